"""Weights & Biases: needs `pip install 'deepseek-moe[wandb]'`.

Its environment variables say where the numbers go: WANDB_PROJECT, WANDB_ENTITY,
WANDB_MODE=offline, …
"""

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from moe.config import Config
from moe.errors import UserError
from moe.metrics import pictures


class WeightsAndBiases:
  """A `writers.Writer`. The id is a hash of the workdir, so that a resumed run stays one run there.

  `step` is the x axis of every metric: what a resumed run writes again is drawn over the same
  steps.
  """

  def __init__(self, config: Config, workdir: Path):
    try:
      import wandb
    except ImportError as error:
      raise UserError(
        "config.train.writers=wandb needs the package wandb: pip install 'deepseek-moe[wandb]'"
      ) from error
    self._wandb = wandb
    identity = hashlib.sha256(str(workdir.absolute()).encode()).hexdigest()[:16]
    try:
      self._run = wandb.init(
        id=identity,
        name=f'{config.name} {workdir.name}',
        config=config.to_dict(),
        dir=str(workdir),
        resume='allow',
        settings=wandb.Settings(console='off', silent=True),
      )
    except wandb.errors.Error as error:
      raise UserError(f'config.train.writers=wandb: {error}') from error
    self._run.define_metric('step')
    self._run.define_metric('*', step_metric='step')

  def write(self, step: int, metrics: Mapping[str, float | None]) -> None:
    numbers = {name: math.nan if value is None else value for name, value in metrics.items()}
    self._run.log({**numbers, 'step': step})

  def write_expert_load(self, step: int, load_NE: np.ndarray) -> None:
    figure = pictures.expert_load(load_NE, step)
    # Log pixels: for the figure itself, wandb would need all of pyplot.
    figure.canvas.draw()
    picture = np.asarray(figure.canvas.buffer_rgba())
    self._run.log({'expert_load': self._wandb.Image(picture), 'step': step})

  def close(self) -> None:
    self._run.finish()
