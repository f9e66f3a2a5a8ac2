"""TensorBoard event files, in WORKDIR/tensorboard."""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from tensorboardX import SummaryWriter

from moe.metrics import pictures


class TensorBoard:
  """A `writers.Writer`. Hides earlier events after the step from which the run resumes."""

  def __init__(self, directory: Path, resumed_from: int):
    self._board = SummaryWriter(str(directory), purge_step=resumed_from + 1)

  def write(self, step: int, metrics: Mapping[str, float | None]) -> None:
    for name, number in metrics.items():
      self._board.add_scalar(name, math.nan if number is None else number, step)

  def write_expert_load(self, step: int, load_NE: np.ndarray) -> None:
    self._board.add_figure('expert_load', pictures.expert_load(load_NE, step), step, close=False)

  def close(self) -> None:
    self._board.close()
