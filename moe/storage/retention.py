"""Which checkpoints stay: the last ones, and those with the lowest held-out loss, whatever came
between and however often the run was stopped.

DIR/held_out_losses.json has the losses by step, since Orbax keeps none:
strict JSON, null for a loss that is not finite.
"""

import json
import math
from collections.abc import Collection, Sequence
from pathlib import Path

from absl import logging
from orbax.checkpoint import checkpoint_managers as managers

from moe import files
from moe.config import CheckpointConfig

FILE = 'held_out_losses.json'


class HeldOutLosses:
  """The losses of a run's checkpoints. Every process holds them all; process 0 writes the file."""

  def __init__(self, workdir: Path, writes: bool):
    self._path, self._writes = workdir / FILE, writes
    self._losses = _read(self._path, workdir / 'metrics.jsonl')

  def note(self, step: int, loss: float | None, steps: Collection[int]) -> None:
    """Records a checkpoint's loss, None if it has none. `steps`: the steps that have a checkpoint;
    the losses of all others are dropped.
    """
    before = dict(self._losses)
    self._losses = {each: before[each] for each in steps if each in before and each != step}
    if loss is not None:
      self._losses[step] = loss if math.isfinite(loss) else None
    if self._writes and self._losses != before:
      files.replace(self._path, files.to_json(self._losses, indent=2) + '\n')

  def best(self, steps: Collection[int], count: int) -> set[int]:
    """At most `count` of `steps`: those with the lowest finite losses, ties to the earlier step."""
    finite = [(self._losses[step], step) for step in steps if self._losses.get(step) is not None]
    return {step for _, step in sorted(finite)[:count]}


class Kept(managers.PreservationPolicy):
  """After each save, Orbax asks this policy which of the checkpoints on disk to keep."""

  def __init__(self, config: CheckpointConfig, losses: HeldOutLosses):
    self._config, self._losses = config, losses

  def should_preserve(self, checkpoints, *, context=None) -> Sequence[bool]:
    del context
    steps = [checkpoint.step for checkpoint in checkpoints]
    kept = self.of(steps)
    return [step in kept for step in steps]

  def of(self, steps: Collection[int]) -> set[int]:
    last = set(sorted(steps)[-self._config.keep_last :])
    return last | self._losses.best(steps, self._config.keep_best)


def _read(path, metrics):
  try:
    stored = files.read_json(path)
    losses = {int(step): loss for step, loss in stored.items()}
    if not all(loss is None or _is_number(loss) for loss in losses.values()):
      raise ValueError('a loss that is no number')
    return losses
  except FileNotFoundError:  # a new run, or one from before this file was kept
    pass
  except ValueError as error:
    logging.error('%s is damaged (%s): its losses are taken from %s', path, error, metrics)
  return _logged(metrics)


def _logged(metrics):
  """The losses in metrics.jsonl. Skips lines without a valid one, damaged lines too."""
  losses = {}
  if not metrics.is_file():
    return losses
  with metrics.open('rb') as lines:
    for text in lines:
      if b'"held_out_loss"' not in text:
        continue
      try:
        line = json.loads(text)
        step, loss = line['step'], line['held_out_loss']
      except (ValueError, KeyError, TypeError):
        continue
      if isinstance(step, int) and (loss is None or _is_number(loss)):
        losses[step] = loss
  return losses


def _is_number(value):
  return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
