"""Where a run's numbers go: metrics.jsonl, TensorBoard, and a progress line."""

import math
import time
from pathlib import Path

import numpy as np
from tensorboardX import SummaryWriter

from moe import files
from moe.metrics import lines


class MetricWriter:
  """Appends to a run's metrics. One open at a time a workdir.

  A resumed run has taken back the lines of steps after its checkpoint (`lines.take_back`): it writes them again.
  """

  def __init__(self, workdir: Path, resumed_from: int):
    self._path = workdir / 'metrics.jsonl'
    self._file = self._path.open('a', encoding='utf-8')
    self._board = SummaryWriter(str(workdir / 'tensorboard'), purge_step=resumed_from + 1)

  def write(self, step: int, metrics: dict[str, object]) -> None:
    """One logged step. Values are numbers, lists by layer, or dicts by domain; arrays of two axes are left out."""
    plain = files.plain({key: value for key, value in metrics.items() if np.ndim(value) < 2})
    self._file.write(files.to_json({'step': step, **plain}) + '\n')
    self._file.flush()
    self._to_board(step, plain)

  def amend(self, step: int, metrics: dict[str, object]) -> None:
    """Adds to the last line, which is of `step`."""
    plain = files.plain(metrics)
    lines.amend_last(self._path, plain)
    self._to_board(step, plain)

  def _to_board(self, step, plain):
    for key, value in plain.items():
      members = {'': value}
      if isinstance(value, list):
        members = {f'/layer_{i}': v for i, v in enumerate(value)}
      elif isinstance(value, dict):
        members = {f'/{name}': v for name, v in value.items()}
      for suffix, number in members.items():
        self._board.add_scalar(f'{key}{suffix}', math.nan if number is None else number, step)

  def write_expert_load(self, step: int, load_NE: np.ndarray) -> None:
    """TensorBoard heatmap: a row a MoE layer, a column an expert, colour the load over the layer's mean."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    layers, experts = load_NE.shape
    figure = Figure(
      figsize=(2 + 0.12 * min(experts, 128), 1.2 + 0.25 * layers), layout='constrained'
    )
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(
      load_NE, vmin=0, vmax=max(2.0, float(load_NE.max())), aspect='auto', interpolation='nearest'
    )
    axes.set(xlabel='expert', ylabel='MoE layer', title=f'expert load over mean, step {step}')
    figure.colorbar(image)
    self._board.add_figure('expert_load', figure, step, close=False)

  def close(self) -> None:
    self._file.close()
    self._board.close()


class Progress:
  """Speed and time left, with pauses (evaluation, saving) taken out of the speed."""

  def __init__(self, num_steps: int, tokens_per_step: int, flops_per_token: float):
    self._num_steps, self._tokens, self._flops = num_steps, tokens_per_step, flops_per_token
    self._since, self._steps, self._paused = time.perf_counter(), 0, 0.0

  def step_done(self) -> None:
    self._steps += 1

  def pause(self, seconds: float) -> None:
    self._paused += seconds

  def rates(self) -> dict[str, float]:
    """tokens_per_second and model_flops_per_second since the last call. Call it after waiting for the device."""
    now = time.perf_counter()
    seconds = max(now - self._since - self._paused, 1e-9)
    rate = self._steps * self._tokens / seconds
    self._since, self._steps, self._paused = now, 0, 0.0
    return {'tokens_per_second': rate, 'model_flops_per_second': rate * self._flops}

  def line(self, step: int, metrics: dict[str, object], is_sample: bool = False) -> str:
    """step 120/600 | loss 4.312 | … | 1:31 left. `is_sample`: the held-out loss is of a part of that text."""
    rate = metrics['tokens_per_second']
    left = (self._num_steps - step) * self._tokens / rate
    parts = [f'step {step}/{self._num_steps}', f'loss {metrics["loss"]:.4f}']
    if 'held_out_loss' in metrics:
      parts.append(f'held-out {metrics["held_out_loss"]:.4f}' + ' (of a sample)' * is_sample)
    if 'max_vio_N' in metrics:
      parts.append(f'MaxVio {np.max(metrics["max_vio_N"]):.2f}')
    if metrics['bad_steps']:
      parts.append(f'skipped {metrics["bad_steps"]}')
    parts += [f'{rate:,.0f} tokens/s', f'{metrics["model_flops_per_second"] / 1e9:,.1f} GFLOP/s']
    return ' | '.join([*parts, f'{_duration(left)} left'])


def _duration(seconds):
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours}:{minutes:02}:{seconds:02}' if hours else f'{minutes}:{seconds:02}'
