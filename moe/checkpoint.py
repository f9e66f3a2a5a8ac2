"""Checkpoints: Orbax step folders with all that a run needs to resume, or a notebook to open it.

DIR/checkpoints/STEP/ has the items params, training (every other field of the state), data
(iterator state), config, tokenizer, text (what identifies the prepared data) and checksums of them
all. A folder appears by one rename, when it is complete.

With several processes, all call the same methods in the same order. Each writes and reads the
parts of arrays that its devices hold; process 0 writes the rest.
A checkpoint depends neither on their number nor on the mesh.
"""

import dataclasses
import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from moe import run
from moe.config import Config, from_stored
from moe.data.tokenizers import Tokenizer
from moe.errors import (
  OF_A_SHARED_FOLDER,
  PEER_LOST,
  UserError,
  chain,
  names,
  of_system,
  one_line,
)
from moe.parallel import processes
from moe.storage import checksums, must_stay, reading, retention, small_items
from moe.storage.reading import attempt, read_items
from moe.train_step import TrainState, init_state

_PIECE = 32 << 20  # bytes


class Restored(NamedTuple):
  """A run as it was after `step` steps. `state` has the requested shardings."""

  step: int
  state: TrainState
  data_state: dict


class Checkpointer:
  """Writes a run's checkpoints in the background, and restores the newest readable one."""

  def __init__(self, workdir: Path, config: Config, tokenizer: Tokenizer, text: dict | None = None):
    """`text`: `must_stay.text_of` the prepared data;
    None to leave the text of checkpoints uncompared.
    """
    self._directory = workdir / 'checkpoints'
    self._config, self._tokenizer, self._text = config, tokenizer, text
    self._losses = retention.HeldOutLosses(workdir, writes=processes.is_main())
    self._kept = retention.Kept(config.checkpoint, self._losses)
    self._manager = self._open()

  def save(
    self, step: int, state: TrainState, data_state: dict, held_out_loss: float | None
  ) -> None:
    """Starts writing step `step`; returns once the state may be changed.
    UserError if this or the last write failed.
    """
    params, training = _split(state)
    processes.together(lambda: self._check_space(step, state))
    sums = {
      'params': checksums.of_arrays(params),
      'training': checksums.of_arrays(training),
      'data': checksums.of_json(data_state),
    }
    items = {
      'params': ocp.args.StandardSave(params, jax.tree.map(_in_pieces, params)),
      'training': ocp.args.StandardSave(training),
      'data': ocp.args.JsonSave(data_state),
      **small_items.to_save(self._config.to_dict(), self._tokenizer, self._text, sums),
    }
    note = lambda: self.note_held_out_loss(step, held_out_loss)
    processes.together(lambda: self._guarded(step, note))
    self._guarded(step, lambda: self._manager.save(step, args=ocp.args.Composite(**items)))

  def note_held_out_loss(self, step: int, loss: float | None) -> None:
    """Records the loss that `checkpoint.keep_best` judges a checkpoint by, saved or about to be."""
    self._losses.note(step, loss, {*self._manager.all_steps(), step})

  def wait(self, step: int) -> None:
    """Returns once every write that was started is on disk. UserError if one failed."""
    self._guarded(step, self._manager.wait_until_finished)

  def restore_newest(self, shardings: Callable | None = None) -> Restored | None:
    """Restores the newest readable checkpoint; None if the run has none yet.

    `shardings`: TrainState of shapes → TrainState of shardings, on any mesh;
    without it, arrays go to the default device.

    Logs unreadable checkpoints and moves them to DIR/unreadable/, so that training can reach their
    step again. Deletes those that the keys of `checkpoint` do not keep. UserError if there are
    checkpoints but none can be read (a run never silently starts from scratch), and if the newest
    readable one has another config, tokenizer or text.
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
      self._delete_others()
      return restored
    if bad:
      raise UserError(
        f'no checkpoint in {self._directory} can be read (steps '
        f'{", ".join(map(str, sorted(bad)))}); move that folder away to start from scratch'
      )
    return None

  def close(self) -> None:
    self._manager.close()

  def _open(self):
    return ocp.CheckpointManager(
      self._directory.absolute(),
      options=ocp.CheckpointManagerOptions(
        preservation_policy=self._kept,
        cleanup_tmp_directories=True,  # what a killed process left half written
      ),
    )

  def _restore(self, step, shardings):
    """(Restored, '') or (None, why it cannot be read), the same in every process."""
    path = epath.Path(self._directory / str(step))
    small, fault = processes.together(lambda: attempt(lambda: small_items.read(path)))
    if fault := processes.first_told(fault):
      return None, fault
    # Compared before arrays are read: those of another config would look damaged.
    processes.together(lambda: self._compare(step, small))
    shapes = jax.eval_shape(lambda: init_state(self._config))
    if shardings:
      placed = lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
      shapes = jax.tree.map(placed, shapes, shardings(shapes))
    params, training = _split(shapes)
    items = {
      'params': ocp.args.StandardRestore(params),
      'training': ocp.args.StandardRestore(training),
      'data': ocp.args.JsonRestore(),
    }
    read, fault = processes.together(lambda: attempt(lambda: _read(path, small, items)))
    if fault := processes.first_told(fault):
      return None, fault
    # Every process has read its parts by now: checksums need all processes.
    fault = checksums.difference(read['params'], small.checksums['params'])
    fault = fault or checksums.difference(read['training'], small.checksums['training'])
    if fault := processes.first_told(fault):
      return None, fault
    state = shapes.replace(params=read['params'], **read['training'])
    return Restored(step, state, read['data']), ''

  def _compare(self, step, small):
    """Raises UserError if the run cannot resume from a checkpoint:
    it holds weights only, or has another config, tokenizer or text.
    """
    where = f'checkpoint step {step} in {self._directory}'
    must_stay.check_can_go_on(small.has_training, where)
    compared = small.text is not None and self._text is not None
    stored = from_stored(small.config, f'{self._directory / str(step)}/config')
    if changed := must_stay.config_changes(stored, self._config, compared):
      raise UserError(
        f'{where} is of another config: {changed}; use another --workdir, or those values'
      )
    if not self._is_ours(small):
      raise UserError(
        f'{where} was trained with another tokenizer than the prepared data has: every id would '
        'mean something else; bring that data back, or use another --workdir'
      )
    if compared and (changed := must_stay.text_changes(small.text, self._text)):
      raise UserError(
        f'{where} was trained on other text: {changed}; '
        'bring that text back, or use another --workdir'
      )
    if not small.checked:
      _log_error(f'{where} is of an older version: its config and tokenizer have no checksums')

  def _is_ours(self, small):
    """Whether a checkpoint's tokenizer gives every text the same ids."""
    if small.tokenizer != self._tokenizer.to_bytes():
      return False
    # Other parts of tokenizer_config.json, such as a chat template, may differ.
    return small.tokenizer_config == self._tokenizer.tokenizer_config or (
      small.open_tokenizer().sha256 == self._tokenizer.sha256
    )

  def _delete_others(self):
    """Deletes checkpoints that were left over by a kill between a save and its clean-up."""
    steps = self._manager.all_steps()
    for step in sorted(set(steps) - self._kept.of(steps)):
      self._guarded(step, lambda step=step: self._manager.delete(step))

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
    """Raises UserError before writing if the disk lacks space:
    when it fills up half-way, other libraries print pages of errors.
    """
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
    except Exception as error:
      # A full disk raises OSError, or an error of TensorStore's that quotes it.
      if jax.process_count() > 1 and not _of_the_disk(error):
        # Another process has ended. The user's input is not at fault, and this process knows no
        # more.
        raise
      kept = _kept(self._manager.all_steps(read=True))
      message = (
        f'could not save checkpoint step {step} to {self._directory}: {one_line(error)}; {kept}'
      )
      raise of_system(error, message) from error


# Names from before moe/run.py existed: people's notebooks and scripts use them.
load_for_notebook = run.load_run
available_steps = reading.available_steps


def _kept(steps):
  return (
    f'the newest complete one is step {max(steps)}' if steps else 'there is no complete one yet'
  )


def _split(state):
  """(params, every other field that holds an array, as a dict).
  They are stored apart so that opening a run reads only a third of the bytes.
  """
  fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
  params = fields.pop('params')
  return params, {name: value for name, value in fields.items() if jax.tree.leaves(value)}


def _in_pieces(x):
  """How a parameter is stored: a large one in pieces, with layers and experts apart. Otherwise one
  device would store a single piece of up to 2 GB, and exports read a piece at a time.
  """
  if x.nbytes <= _PIECE:
    return ocp.SaveArgs()
  return ocp.SaveArgs(chunk_byte_size=_PIECE, shard_axes=tuple(range(x.ndim - 2)))


def _of_the_disk(error: BaseException | None) -> bool:
  """Whether the disk made a write fail; failures by other processes come from JAX's runtime."""
  numbers = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, *OF_A_SHARED_FOLDER)
  return any(
    names(cause, numbers) or (isinstance(cause, OSError) and not isinstance(cause, PEER_LOST))
    for cause in chain(error)
  )


def _read(path, small, items):
  """Reads a checkpoint and checks what one process can check alone. ValueError if it is damaged."""
  found = read_items(path, **items)
  if checksums.of_json(found['data']) != small.checksums['data']:
    raise ValueError('the state of the data iterator is not the one that was saved')
  return found


def _log_error(message):
  if processes.is_main():
    logging.error('%s', message)
