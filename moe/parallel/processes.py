"""Several processes as one program: how they find each other, fail as one,
and stop at the same step.

For a single process, everything here returns at once and starts nothing. What a process does by
itself, such as reading a file, may fail there alone; `together` and `main_first` make it fail in
all processes, so that none waits for one that has left.
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
# Seconds process 0 may take to prepare data; if it dies meanwhile, the others miss its heartbeat.
_LONGEST_WAIT = 7 * 24 * 3600
_PATIENCE = 20  # seconds to wait for the others to reach an error that all should share
_MESSAGE_BYTES = 1000  # at most, of an error message that the other processes get


class Cluster(NamedTuple):
  """How processes find each other: by the first three fields, or, without them, by what Slurm,
  a TPU pod or MPI says.
  """

  coordinator: str | None = None  # HOST:PORT, of process 0
  num_processes: int | None = None  # 1, the others None: no cluster, whatever the environment says
  process_id: int | None = None
  # Seconds without a sign of life after which a process counts as dead, and the others end.
  heartbeat_timeout: int = 60
  start_timeout: int = 300  # seconds for all processes to join


@contextlib.contextmanager
def join(cluster: Cluster) -> Iterator[None]:
  """Inside, this process is part of the cluster. Enter it before any use of a device.

  Leaves together with the others, at the end or with a UserError that all share. Any other
  exception ends the process at once, with exit code 1 (Ctrl-C: 130):
  if it waited for the others, they would not notice.
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
  """What `action` returns. Every process calls it;
  if it raises a UserError (TryAgain) in any, all of them raise one.

  An OSError becomes a UserError, too: a disk that is full for one process ends all of them.
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
  """The first message of any process that is not empty, or '', the same in every process."""
  if jax.process_count() == 1:
    return message
  message_B = np.zeros(_MESSAGE_BYTES, np.uint8)
  told = message.encode()[:_MESSAGE_BYTES]
  message_B[: len(told)] = np.frombuffer(told, np.uint8)
  messages = [row_B.tobytes().rstrip(b'\0').decode(errors='ignore') for row_B in _gather(message_B)]
  return next((f'process {number}: {told}' for number, told in enumerate(messages) if told), '')


def main_first(name: str, action: Callable[[], T]) -> T:
  """As `together`, but the others call `action` only after process 0 has succeeded,
  however long that takes. `name`: must not be used twice.
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
  """A request to stop, made by the first SIGTERM, SIGHUP or Ctrl-C in any process; a second
  Ctrl-C interrupts at once.

  A single process stops after the current step. Of several, each passes its request to every step
  (`asked`), and the compiled step joins the requests among its other collectives. All processes
  read the answer (`agreed`) once the next step has started: they stop one step later, for a few
  bytes a step, and the device never waits for the host.
  """

  def __init__(self, mesh: Mesh):
    self.requested, self.name = False, 'a signal to another process'
    self._alone = jax.process_count() == 1
    self._sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    self._answer = None  # 'stop' of the previous step

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
    """(request by device,), the argument that `with_stop` adds to a step; () for one process."""
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
  """train_step(state, batch, numbers, *Stop.asked()) → (state, metrics).
  With several processes, metrics['stop'] says whether any of them asked to stop.
  """

  def step(state, batch, numbers, *wish_P):
    state, metrics = train_step(state, batch, numbers)
    return state, metrics | ({'stop': wish_P[0].any()} if wish_P else {})

  return step


@contextlib.contextmanager
def stop_on_signal(mesh: Mesh) -> Iterator[Stop]:
  """A Stop that receives this process's signals."""
  stop = Stop(mesh)
  heard = [signal.SIGTERM, signal.SIGINT]
  if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup sets SIG_IGN
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
  """Raises UserError, naming the flags at fault."""
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
  """Joins the cluster; returns False if there is none."""
  if _declined(cluster):
    return False
  if cluster.coordinator:
    _meet(cluster)
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  handler = signal.getsignal(signal.SIGTERM)
  try:
    # JAX warns about a Kubernetes pod that is not part of a cluster.
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
    # This is how JAX says that it knows of no cluster.
    if 'coordinator_address should be defined' in str(error):
      return False
    raise UserError(f'cannot join the cluster: {error}') from error
  except RuntimeError as error:  # such as another process that has not joined in time
    raise TryAgain(f'cannot join the cluster: {error}') from error
  # JAX now takes SIGTERM for its own preemption service, which nothing here asks:
  # the signal would have no effect until `Stop` handles it.
  signal.signal(signal.SIGTERM, handler)
  return True


def _meet(cluster):
  """Process 0: checks that it can listen. The others: wait until it answers.
  If either failed inside JAX, it would end the process with pages of C++.
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
        # A port in use may still belong to the previous start, which is about to end.
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
  """The address to listen at: `host` if it is one; '' for a name,
  which may mean another interface to other machines.
  """
  if host == 'localhost':
    return '127.0.0.1'
  try:
    return str(ipaddress.ip_address(host))
  except ValueError:
    return ''


def _leave_after_an_error():
  """Leaves once the others have reached the same error:
  if the coordinator ended earlier, they would end before they could report it.
  """
  try:
    multihost.sync_global_processes('leaving after an error', timeout=_PATIENCE)
  except Exception:  # the error is this process's alone; the others will miss its heartbeat
    return
  jax.distributed.shutdown()


def _gather(array):
  """Every process's array, stacked by process."""
  return multihost_utils.process_allgather(array)
