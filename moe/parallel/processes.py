"""Several processes as one program: how they find each other, fail as one,
and stop at the same step.

Alone, everything here returns at once and starts nothing. What a process does by itself, such as
reading a file, may fail for it alone; `together` and `main_first` make that the failure of all, so
that none waits for one that has left.
"""

import contextlib
import errno
import ipaddress
import os
import signal
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from orbax.checkpoint import multihost

from moe.errors import TryAgain, UserError, of_file

T = TypeVar('T')
# Seconds for process 0 to prepare data; if it dies meanwhile, the heartbeat tells.
_LONGEST_WAIT = 7 * 24 * 3600
_PATIENCE = 20  # seconds for the others to come to an error that all should share
_MESSAGE_BYTES = 1000  # of an error that is told to the other processes


class Cluster(NamedTuple):
  """How processes find each other: by the first three, or, without them, by what Slurm,
  a TPU pod or MPI says.
  """

  coordinator: str | None = None  # HOST:PORT, of process 0
  num_processes: int | None = None  # 1 alone: no cluster, whatever the environment says
  process_id: int | None = None
  # Seconds without a sign of life after which a process is dead, and the others end.
  heartbeat_timeout: int = 60
  start_timeout: int = 300  # seconds for all of them to come


@contextlib.contextmanager
def join(cluster: Cluster) -> Iterator[None]:
  """Inside, this process is one of the cluster's. Before any use of a device.

  Leaves together with the others, at the end or with a UserError that all share. Any other
  exception ends the process at once, exit code 1 (Ctrl-C: 130):
  were it to wait for the others, they would not notice.
  """
  _check(cluster)
  if not _start(cluster):
    yield
    return
  try:
    yield
  except UserError:
    _leave_after_an_error()
    raise
  except KeyboardInterrupt:
    print('interrupted', file=sys.stderr, flush=True)
    os._exit(130)
  except BaseException:
    traceback.print_exc()
    os._exit(1)
  jax.distributed.shutdown()


def is_main() -> bool:
  """Whether this is the process that writes files and prints."""
  return jax.process_index() == 0


def together(action: Callable[[], T]) -> T:
  """What `action` returns, which every process calls;
  UserError (TryAgain) in all of them if it raised one in any.

  Of files, too: what a full disk refuses to one process ends all of them.
  """
  result, error = None, None
  try:
    result = action()
  except UserError as raised:
    error = raised
  except OSError as raised:
    error = of_file(raised)
    error.__cause__ = raised
  told = first_told(str(error or ''))
  if not told:
    return result
  again = jax.process_count() > 1 and _gather(np.int32(isinstance(error, TryAgain))).any()
  raise error or (TryAgain if again else UserError)(told)


def first_told(message: str) -> str:
  """'', or the first message that is not empty, in every process."""
  if jax.process_count() == 1:
    return message
  message_B = np.zeros(_MESSAGE_BYTES, np.uint8)
  told = message.encode()[:_MESSAGE_BYTES]
  message_B[: len(told)] = np.frombuffer(told, np.uint8)
  messages = [row_B.tobytes().rstrip(b'\0').decode(errors='ignore') for row_B in _gather(message_B)]
  return next((f'process {number}: {told}' for number, told in enumerate(messages) if told), '')


def main_first(name: str, action: Callable[[], T]) -> T:
  """As `together`, but the others start when process 0 has succeeded,
  however long that takes. `name`: used once.
  """
  if jax.process_count() == 1:
    return action()

  def main_only():
    try:
      return action() if is_main() else None
    finally:
      multihost.sync_global_processes(f'{name} is ready', timeout=_LONGEST_WAIT)

  result = together(main_only)
  return together(lambda: result if is_main() else action())


def from_main(value: int) -> int:
  """Process 0's `value`, below 2³¹ in magnitude, in every process."""
  if jax.process_count() == 1:
    return value
  return int(_gather(np.int32(value))[0])


class Stop:
  """A wish to stop, by the first SIGTERM, SIGHUP or Ctrl-C in any process; a second
  Ctrl-C interrupts at once.

  Alone, a run stops after the step at hand. With others, each hands its wish to every step
  (`asked`), the compiled step joins them among its other collectives, and all read the answer
  (`agreed`) when the next step has been started: one step later, for a few bytes a step, and
  without the device waiting for the host.
  """

  def __init__(self, mesh: Mesh):
    self.requested, self.name = False, 'a signal to another process'
    self._alone = jax.process_count() == 1
    self._sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    self._answer = None  # of the step before

  def __call__(self, number, frame):
    del frame
    if self.requested and number == signal.SIGINT:
      raise KeyboardInterrupt
    self.requested, self.name = True, signal.Signals(number).name
    logging.warning('%s: stopping after this step', self.name)

  def before_the_first_step(self) -> bool:
    """Whether any process has been asked to stop by now; all of them call this."""
    return bool(first_told(self.name if self.requested else ''))

  def asked(self) -> tuple[jax.Array, ...]:
    """(wish by device,), the argument that `with_stop` adds to a step; () alone."""
    if self._alone:
      return ()
    wish_P = np.full(jax.local_device_count(), self.requested)
    return (jax.make_array_from_process_local_data(self._sharding, wish_P),)

  def agreed(self, metrics: dict) -> bool:
    """Whether this step is the last one, the same in every process.
    Takes 'stop' out of the step's metrics.
    """
    if self._alone:
      return self.requested
    before, self._answer = self._answer, metrics.pop('stop')
    return before is not None and bool(before)


def with_stop(train_step: Callable) -> Callable:
  """train_step(state, batch, numbers, *Stop.asked()) → (state, metrics),
  with metrics['stop'] where there are others.
  """

  def step(state, batch, numbers, *wish_P):
    state, metrics = train_step(state, batch, numbers)
    return state, metrics | ({'stop': wish_P[0].any()} if wish_P else {})

  return step


@contextlib.contextmanager
def stop_on_signal(mesh: Mesh) -> Iterator[Stop]:
  """A Stop that hears this process's signals."""
  stop = Stop(mesh)
  heard = [signal.SIGTERM, signal.SIGINT]
  if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # which nohup has asked for
    heard.append(signal.SIGHUP)
  try:
    old = {number: signal.signal(number, stop) for number in heard}
  except ValueError:
    # Not in the main thread, as in a notebook's worker: signals are someone else's.
    yield stop
    return
  try:
    yield stop
  finally:
    for number, handler in old.items():
      signal.signal(number, handler)


def _check(cluster):
  """UserError naming the flags at fault."""
  given = {
    'coordinator': cluster.coordinator,
    'num_processes': cluster.num_processes,
    'process_id': cluster.process_id,
  }
  missing = [f'--{name}' for name, value in given.items() if value is None]
  if cluster.num_processes is not None and cluster.num_processes < 1:
    raise UserError(f'--num_processes must be at least 1, not {cluster.num_processes}')
  for name in ('heartbeat_timeout', 'start_timeout'):
    if getattr(cluster, name) < 1:
      raise UserError(f'--{name} must be at least 1 second, not {getattr(cluster, name)}')
  if _declined(cluster) or len(missing) == len(given):
    return
  if missing:
    raise UserError(
      f'{" and ".join(missing)} must be given too: --coordinator=HOST:PORT, --num_processes=N and '
      '--process_id=I belong together'
    )
  host, _, port = cluster.coordinator.rpartition(':')
  if not host or not port.isdigit() or not 0 < int(port) < 65536:
    raise UserError(f'--coordinator must be HOST:PORT, not {cluster.coordinator!r}')
  if not 0 <= cluster.process_id < cluster.num_processes:
    raise UserError(
      f'--process_id={cluster.process_id} must be from 0 to {cluster.num_processes - 1}, '
      f'as --num_processes={cluster.num_processes}'
    )


def _declined(cluster):
  return cluster.num_processes == 1 and cluster.coordinator is None and cluster.process_id is None


def _start(cluster):
  """Joins; False where there is nothing to join."""
  if _declined(cluster):
    return False
  if cluster.coordinator:
    _meet(cluster)
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  handler = signal.getsignal(signal.SIGTERM)
  try:
    # Of a Kubernetes pod that is no part of a cluster.
    with warnings.catch_warnings(action='ignore'):
      jax.distributed.initialize(
        cluster.coordinator,
        cluster.num_processes,
        cluster.process_id,
        cluster_detection_method='deactivate' if cluster.coordinator else None,
        initialization_timeout=cluster.start_timeout,
        heartbeat_timeout_seconds=cluster.heartbeat_timeout,
        coordinator_bind_address=_bind_address(cluster),
      )
  except ValueError as error:
    # JAX's way to say that it knows of no cluster.
    if 'coordinator_address should be defined' in str(error):
      return False
    raise UserError(f'cannot join the cluster: {error}') from error
  except RuntimeError as error:  # such as another process that has not come in time
    raise TryAgain(f'cannot join the cluster: {error}') from error
  # JAX now takes SIGTERM as notice for its own service, which nothing here asks:
  # it would go unheard until `Stop`.
  signal.signal(signal.SIGTERM, handler)
  return True


def _meet(cluster):
  """Looks whether process 0 can be there: where it cannot,
  JAX ends the process with pages of C++.
  """
  host, _, port = cluster.coordinator.rpartition(':')
  host = host.strip('[]')
  if cluster.process_id == 0:
    address = _own_address(host)
    family = socket.AF_INET6 if ':' in address else socket.AF_INET
    with contextlib.closing(socket.socket(family)) as taken:
      taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
      try:
        taken.bind((address, int(port)))
      except OSError as error:
        # A port in use may be that of a start before this one, which is about to end.
        kind = TryAgain if error.errno == errno.EADDRINUSE else UserError
        raise kind(
          f'--coordinator={cluster.coordinator}: process 0 cannot listen there: {error}'
        ) from error
    return
  deadline = time.monotonic() + cluster.start_timeout
  while True:
    try:
      socket.create_connection((host, int(port)), timeout=5).close()
      return
    except OSError as error:  # not yet started, or its name not yet known
      if time.monotonic() >= deadline:
        raise TryAgain(
          f'--coordinator={cluster.coordinator} did not answer within {cluster.start_timeout} s: '
          f'{error.strerror or error}'
        ) from error
    time.sleep(0.2)


def _bind_address(cluster):
  """Where process 0 listens, HOST:PORT; None for all interfaces, which is JAX's default."""
  host, _, port = (cluster.coordinator or '').rpartition(':')
  address = _own_address(host.strip('[]'))
  if not address:
    return None
  return f'[{address}]:{port}' if ':' in address else f'{address}:{port}'


def _own_address(host):
  """The address to listen at: the one given; '' for a name,
  which may mean another interface to other machines.
  """
  if host == 'localhost':
    return '127.0.0.1'
  try:
    return str(ipaddress.ip_address(host))
  except ValueError:
    return ''


def _leave_after_an_error():
  """Waits for the others to come to the same error:
  the coordinator's end would end them before they could tell it.
  """
  try:
    multihost.sync_global_processes('leaving after an error', timeout=_PATIENCE)
  except Exception:  # the error is this process's alone; the others will miss its heartbeat
    return
  jax.distributed.shutdown()


def _gather(array):
  """Every process's array, stacked by process."""
  return multihost_utils.process_allgather(array)
