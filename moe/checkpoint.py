"""Checkpoints: Orbax step folders that hold all a run needs to go on, or a notebook to open it.

DIR/checkpoints/STEP/ has the items params, training (optimizer state and counters), data (iterator state), config,
tokenizer, and checksums of every array. A folder appears by one rename, when it is complete.

With several processes all call the same methods in the same order: each writes and reads the parts of arrays that its
devices hold, process 0 the rest. Nothing in a checkpoint depends on their number or on the mesh.
"""

import contextlib
import dataclasses
import errno
import gc
import json
import os
import shutil
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax import lax
from orbax.checkpoint import checkpoint_managers as managers

from moe.config import CheckpointConfig, Config, OpsConfig, from_stored
from moe.data.tokenizer import Tokenizer
from moe.errors import (
  OF_A_SHARED_FOLDER,
  PEER_LOST,
  TryAgain,
  UserError,
  chain,
  is_transient,
  names,
  of_system,
  one_line,
)
from moe.model import Transformer, init_params
from moe.parallel import processes
from moe.train_step import TrainState, init_state


class Restored(NamedTuple):
  """A run as it was after `step` steps. `state` has the shardings that were asked for."""

  step: int
  state: TrainState
  data_state: dict


class Checkpointer:
  """Writes a run's checkpoints in the background, and finds the newest that is whole."""

  def __init__(self, workdir: Path, config: Config, tokenizer: Tokenizer):
    self._directory = workdir / 'checkpoints'
    self._config = config
    self._tokenizer = np.frombuffer(tokenizer.to_bytes(), np.uint8)
    self._manager = self._open()

  def save(
    self, step: int, state: TrainState, data_state: dict, held_out_loss: float | None
  ) -> None:
    """Starts writing step `step`; returns once the state may be changed. UserError if this or the last write failed."""
    params, training = _split(state)
    processes.together(lambda: self._check_space(step, state))
    items = {
      'params': ocp.args.StandardSave(params),
      'training': ocp.args.StandardSave(training),
      'data': ocp.args.JsonSave(data_state),
      'config': ocp.args.JsonSave(self._config.to_dict()),
      'tokenizer': ocp.args.StandardSave({'model': self._tokenizer}),
      'checksums': ocp.args.JsonSave(
        {
          'params': _checksums(params),
          'training': _checksums(training),
          'data': _checksum_of_json(data_state),
        }
      ),
    }
    metrics = {'held_out_loss': held_out_loss} if held_out_loss is not None else None
    self._guarded(
      step, lambda: self._manager.save(step, args=ocp.args.Composite(**items), metrics=metrics)
    )

  def wait(self, step: int) -> None:
    """Returns when everything started is on disk. UserError if it could not be written."""
    self._guarded(step, self._manager.wait_until_finished)

  def restore_newest(self, shardings: Callable | None = None) -> Restored | None:
    """The newest readable checkpoint; None if the run has none yet.

    `shardings`: TrainState of shapes → TrainState of shardings, whatever mesh wrote it; without it, the default device.

    Unreadable ones are named in the log and moved to DIR/unreadable/, so that training can reach their step again.
    UserError if there are checkpoints but none can be read: never silently from scratch.
    """
    bad = []
    while (
      step := processes.from_main(max(set(self._manager.all_steps()) - set(bad), default=-1))
    ) >= 0:
      restored, fault = self._restore(step, shardings)
      if fault:
        _log_error(f'checkpoint step {step} in {self._directory} is unreadable: {fault}')
        bad.append(step)
        continue
      if bad:
        _log_error(f'going on from step {step}, the newest readable one')
        self._set_aside(bad)
      return restored
    if bad:
      raise UserError(
        f'no checkpoint in {self._directory} can be read (steps {", ".join(map(str, sorted(bad)))}); '
        'move that folder away to start from scratch'
      )
    return None

  def close(self) -> None:
    self._manager.close()

  def _open(self):
    return ocp.CheckpointManager(
      self._directory.absolute(),
      options=ocp.CheckpointManagerOptions(
        preservation_policy=_preserved(self._config.checkpoint),
        cleanup_tmp_directories=True,  # what a killed process left half written
      ),
    )

  def _restore(self, step, shardings):
    """(Restored, '') or (None, why it cannot be read), the same in every process."""
    shapes = jax.eval_shape(lambda: init_state(self._config))
    if shardings:
      placed = lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
      shapes = jax.tree.map(placed, shapes, shardings(shapes))
    params, training = _split(shapes)
    read, fault = processes.together(lambda: _attempt(lambda: self._read(step, params, training)))
    if fault := processes.first_told(fault):
      return None, fault
    # All have read their parts: checksums, which need every process, can be taken.
    items, expected = read
    fault = _difference(items['params'], expected['params']) or _difference(
      items['training'], expected['training']
    )
    if not fault and _checksum_of_json(items['data']) != expected['data']:
      fault = 'the state of the data iterator is not the one that was saved'
    if fault := processes.first_told(fault):
      return None, fault
    return Restored(
      step, TrainState(params=items['params'], **items['training']), items['data']
    ), ''

  def _read(self, step, params, training):
    """(items, their checksums as they were saved): what this process can tell of a checkpoint by itself."""
    items = _read(
      self._directory / str(step),
      params=ocp.args.StandardRestore(params),
      training=ocp.args.StandardRestore(training),
      data=ocp.args.JsonRestore(),
      checksums=ocp.args.JsonRestore(),
    )
    return items, {name: items['checksums'][name] for name in ('params', 'training', 'data')}

  def _set_aside(self, steps):
    self._manager.close()
    processes.main_first(f'checkpoints without {steps}', lambda: self._move_away(steps))
    self._manager = self._open()

  def _move_away(self, steps):
    for step in steps if processes.is_main() else ():
      target = self._directory.parent / 'unreadable' / str(step)
      if target.exists():
        shutil.rmtree(target)
      target.parent.mkdir(exist_ok=True)
      (self._directory / str(step)).rename(target)

  def _check_space(self, step, state):
    """Asks before writing: a disk that fills up half-way makes other libraries print pages of errors."""
    needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    free = shutil.disk_usage(self._directory).free
    if free < needed:
      good = self._manager.all_steps()
      raise UserError(
        f'could not save checkpoint step {step} to {self._directory}: No space left on device '
        f'({needed / 1e6:.1f} MB needed, {free / 1e6:.1f} MB free); {_kept(good)}'
      )

  def _guarded(self, step, action):
    try:
      action()
    except (
      Exception
    ) as error:  # a full disk reaches us as OSError, or as what tensorstore makes of it
      if jax.process_count() > 1 and not _of_the_disk(error):
        raise  # another process has ended: no fault of what the user gave, and nothing that this one can tell
      kept = _kept(self._manager.all_steps(read=True))
      message = (
        f'could not save checkpoint step {step} to {self._directory}: {one_line(error)}; {kept}'
      )
      raise of_system(error, message) from error


class NotebookRun(NamedTuple):
  """A trained model opened for use: `model.apply({'params': params}, …)`."""

  model: Transformer
  params: dict
  tokenizer: Tokenizer
  config: Config
  step: int


def load_for_notebook(workdir: str | os.PathLike, step: int | None = None) -> NotebookRun:
  """Opens the newest readable checkpoint of a run, or a given step: model, params, tokenizer, config, step.

  Reads parameters only, onto this process's default device, whatever devices wrote them. `workdir` may be in a bucket
  (gs://BUCKET/DIR); nothing in it is changed. UserError if there is no checkpoint, or not of the step, or unreadable.
  """
  directory = epath.Path(workdir) / 'checkpoints'
  steps, fault = _attempt(lambda: available_steps(workdir))
  if fault:
    raise UserError(f'cannot list {directory}: {fault}')
  if not steps:
    raise UserError(f'no checkpoint in {directory}: train with --workdir={workdir} first')
  if step is not None and step not in steps:
    raise UserError(
      f'no checkpoint of step {step} in {directory}; there are {", ".join(map(str, steps))}'
    )
  for candidate in [step] if step is not None else reversed(steps):
    run, fault = _attempt(lambda candidate=candidate: _load(directory, candidate))
    if not fault:
      return run
    message = f'checkpoint step {candidate} in {directory} is unreadable: {fault}'
    if step is not None:
      raise UserError(message)
    logging.error('%s', message)
  raise UserError(f'no checkpoint in {directory} can be read (steps {", ".join(map(str, steps))})')


def available_steps(workdir: str | os.PathLike) -> list[int]:
  """Steps with a complete checkpoint folder, ascending."""
  return sorted(
    int(f.name)
    for f in (epath.Path(workdir) / 'checkpoints').glob('*')
    if f.name.isdigit() and f.is_dir()
  )


def _kept(steps):
  return (
    f'the newest complete one is step {max(steps)}' if steps else 'there is no complete one yet'
  )


def _attempt(read: Callable) -> tuple[object, str]:
  """(what `read` returns, '') or (None, why it failed); TryAgain if that says nothing of what was to be read.

  After one failure, the reads still under way print a traceback each, straight to the process's stderr: what is
  written there meanwhile is dropped with the failure, which is told in one line instead.
  """
  sys.stderr.flush()
  stderr = os.dup(2)
  result, fault, transient = None, '', False
  with tempfile.TemporaryFile() as printed:
    os.dup2(printed.fileno(), 2)
    try:
      result = read()
    except (
      Exception
    ) as error:  # Orbax raises a different type for each way in which files can be damaged.
      fault = one_line(error)
      # A failing disk says EIO as long as it lives: what it cannot read is as good as damaged.
      transient = is_transient(error, OF_A_SHARED_FOLDER - {errno.EIO})
    finally:
      if fault:
        gc.collect()  # coroutines that nobody awaits any more complain when they are collected
        time.sleep(0.3)  # and reads when they end
      os.dup2(stderr, 2)
      os.close(stderr)
    if not fault:
      printed.seek(0)
      sys.stderr.write(printed.read().decode(errors='replace'))
  if transient:
    raise TryAgain(f'a checkpoint cannot be read now: {fault}')
  return result, fault


def _read(path, **items):
  """Items of a checkpoint, without any other process: one that fails then leaves none waiting."""
  own = ocp.options.MultiprocessingOptions(
    primary_host=jax.process_index(),
    active_processes={jax.process_index()},
    barrier_sync_key_prefix=f'process{jax.process_index()}',
  )
  handler = ocp.CompositeCheckpointHandler(
    composite_options=ocp.CompositeOptions(multiprocessing_options=own)
  )
  with contextlib.closing(ocp.Checkpointer(handler, multiprocessing_options=own)) as checkpointer:
    # epath would put the current directory before a bucket's address.
    path = path if '://' in os.fspath(path) else path.absolute()
    return checkpointer.restore(path, ocp.args.Composite(**items))


def _load(directory, step):
  restore = lambda **items: _read(directory / str(step), **items)
  stored = restore(config=ocp.args.JsonRestore())['config']
  config = from_stored(stored, f'{directory / str(step)}/config')
  config = dataclasses.replace(
    config, ops=OpsConfig('auto')
  )  # the run's kernels need not exist on this machine
  shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
  device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), shapes)
  items = restore(
    params=ocp.args.StandardRestore(params),
    tokenizer=ocp.args.StandardRestore(),
    checksums=ocp.args.JsonRestore(),
  )
  if fault := _difference(items['params'], items['checksums']['params']):
    raise ValueError(fault)
  tokenizer = Tokenizer.from_bytes(np.asarray(items['tokenizer']['model']).tobytes())
  return NotebookRun(Transformer(config), items['params'], tokenizer, config, step)


def _split(state):
  """(params, the rest as a dict): a notebook then reads a third of the bytes."""
  rest = {
    name: getattr(state, name) for name in ('step', 'optimizer_state', 'bad_steps', 'bad_streak')
  }
  return state.params, rest


def _preserved(config: CheckpointConfig):
  policies = [managers.LatestN(config.keep_last)]
  if config.keep_best:
    better = lambda metrics: -metrics['held_out_loss'] if metrics else float('-inf')
    policies.append(managers.BestN(get_metric_fn=better, n=config.keep_best))
  return managers.AnyPreservationPolicy(policies)


def _checksums(tree) -> dict[str, int]:
  """{path: checksum}: the sum over elements of bits · an odd number for their index, modulo 2³².

  Computed where the arrays lie. Integer sums do not depend on order, hence not on devices either.
  """
  flat = {
    jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }
  return {name: int(value) for name, value in jax.device_get(_checksum_leaves(flat)).items()}


def _checksum_of_json(value) -> int:
  return zlib.crc32(json.dumps(value, sort_keys=True).encode())


@jax.jit
def _checksum_leaves(leaves):
  def checksum(x):
    bits, index = lax.bitcast_convert_type(x, jnp.uint32), jnp.uint32(0)
    for axis, size in enumerate(
      x.shape
    ):  # in place of a flat array, which would gather what devices share
      index = index * jnp.uint32(size) + lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    return (bits * (2 * index + 1)).sum(dtype=jnp.uint32)

  return {name: checksum(leaf) for name, leaf in leaves.items()}


def _difference(tree, expected) -> str:
  """'', or which array is not the one whose checksum is expected."""
  different = [name for name, value in _checksums(tree).items() if expected.get(name) != value]
  return f'the bytes of {different[0]} are not those that were saved' if different else ''


def _of_the_disk(error: BaseException | None) -> bool:
  """Whether a write failed for itself; what other processes do to it comes from JAX's runtime."""
  numbers = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, *OF_A_SHARED_FOLDER)
  return any(
    names(cause, numbers) or (isinstance(cause, OSError) and not isinstance(cause, PEER_LOST))
    for cause in chain(error)
  )


def _log_error(message):
  if processes.is_main():
    logging.error('%s', message)
