"""Where a run's numbers go: metrics.jsonl always, and the writers of `train.writers`.

A new writer needs a file with a class like TensorBoard, and a line in WRITERS.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from moe import files
from moe.config import Config
from moe.errors import UserError
from moe.metrics import lines


class Writer(Protocol):
  """A place where numbers go. Process 0 opens it, with the step from which the run resumes."""

  def write(self, step: int, metrics: Mapping[str, float | None]) -> None:
    """Writes scalars by name, such as loss or max_vio_N/layer_0; None: a number was not finite."""

  def write_expert_load(self, step: int, load_NE: np.ndarray) -> None:
    """Writes every expert's load over its layer's mean."""

  def close(self) -> None: ...


def _tensorboard(config: Config, workdir: Path, resumed_from: int) -> Writer:
  from moe.metrics.tensorboard import TensorBoard

  return TensorBoard(workdir / 'tensorboard', resumed_from)


def _wandb(config: Config, workdir: Path, resumed_from: int) -> Writer:
  from moe.metrics.weights_and_biases import WeightsAndBiases

  return WeightsAndBiases(config, workdir)


WRITERS: dict[str, Callable[[Config, Path, int], Writer]] = {
  'tensorboard': _tensorboard,
  'wandb': _wandb,
}


def chosen(names: str) -> list[str]:
  """The names in a comma-separated `train.writers`. UserError for one that does not exist."""
  listed = [name.strip() for name in names.split(',') if name.strip()]
  for name in listed:
    if name not in WRITERS:
      raise UserError(f'config.train.writers={names}: {name!r} is none of {", ".join(WRITERS)}')
  return list(dict.fromkeys(listed))


class MetricWriter:
  """A run's metrics.jsonl and its writers. Only one may be open in a workdir at a time.

  A resumed run first removes the lines of steps after its checkpoint (`lines.take_back`), as it
  writes them again.
  """

  def __init__(self, config: Config, workdir: Path, resumed_from: int):
    self._path = workdir / 'metrics.jsonl'
    self._file = self._path.open('a', encoding='utf-8')
    self._writers = [
      WRITERS[name](config, workdir, resumed_from) for name in chosen(config.train.writers)
    ]

  def write(self, step: int, metrics: Mapping[str, object], heatmap: bool = False) -> None:
    """Writes one logged step. Values are numbers, lists by layer, or dicts by domain.

    Of arrays with two axes only expert_load_NE is written, if `heatmap` asks for it: to
    metrics.jsonl rounded to three decimals, to the writers as a heatmap.
    """
    plain = files.plain({key: value for key, value in metrics.items() if np.ndim(value) < 2})
    load_NE = metrics.get('expert_load_NE') if heatmap else None
    detail = {}
    if load_NE is not None:
      # float64: a rounded float32 would take more than three decimals in JSON.
      detail['expert_load_NE'] = np.round(np.asarray(load_NE, np.float64), 3).tolist()
    self._file.write(files.to_json({'step': step, **plain, **detail}) + '\n')
    self._file.flush()
    for writer in self._writers:
      writer.write(step, scalars(plain))
      if load_NE is not None:
        writer.write_expert_load(step, load_NE)

  def amend(self, step: int, metrics: Mapping[str, object]) -> None:
    """Adds metrics to the last line, which must be that of `step`."""
    plain = files.plain(metrics)
    lines.amend_last(self._path, plain)
    for writer in self._writers:
      writer.write(step, scalars(plain))

  def close(self) -> None:
    self._file.close()
    for writer in self._writers:
      writer.close()


def scalars(plain: Mapping[str, object]) -> dict[str, float | None]:
  """{'max_vio_N': [1, 2]} → {'max_vio_N/layer_0': 1, 'max_vio_N/layer_1': 2};
  dicts by their keys.
  """
  found = {}
  for key, value in plain.items():
    if isinstance(value, list):
      found |= {f'{key}/layer_{number}': each for number, each in enumerate(value)}
    elif isinstance(value, dict):
      found |= {f'{key}/{name}': each for name, each in value.items()}
    else:
      found[key] = value
  return found
