"""Where a run's numbers go: metrics.jsonl, TensorBoard, and a progress line."""

import json
import math
import os
import time
from pathlib import Path

import numpy as np
from tensorboardX import SummaryWriter


class MetricWriter:
  """Appends to a run's metrics. One open at a time a workdir.

  A resumed run takes back the lines of steps after its checkpoint: it will write them again, the same.
  """

  def __init__(self, workdir: Path, resumed_from: int):
    self._path = workdir / 'metrics.jsonl'
    _drop_after(self._path, resumed_from)
    self._file = self._path.open('a', encoding='utf-8')
    self._board = SummaryWriter(str(workdir / 'tensorboard'), purge_step=resumed_from + 1)

  def write(self, step: int, metrics: dict[str, object]) -> None:
    """One logged step. Values are numbers, lists by layer, or dicts by domain; arrays of two axes are left out."""
    plain = {key: _plain(value) for key, value in metrics.items() if np.ndim(value) < 2}
    self._file.write(json.dumps({'step': step, **plain}) + '\n')
    self._file.flush()
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

  def line(self, step: int, metrics: dict[str, object]) -> str:
    """step 120/600 | loss 4.312 | … | 1:31 left."""
    rate = metrics['tokens_per_second']
    left = (self._num_steps - step) * self._tokens / rate
    parts = [f'step {step}/{self._num_steps}', f'loss {metrics["loss"]:.4f}']
    if 'held_out_loss' in metrics:
      parts.append(f'held-out {metrics["held_out_loss"]:.4f}')
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


def _plain(value):
  """JSON types; a float keeps every bit. A number that JSON lacks becomes None."""
  if isinstance(value, dict):
    return {key: _plain(item) for key, item in value.items()}
  if np.ndim(value) == 1:
    return [_plain(item) for item in value]
  value = np.asarray(value).item()
  return None if isinstance(value, float) and not math.isfinite(value) else value


def _drop_after(path, step):
  """Removes lines of later steps, and a last line cut short by a kill; the file is replaced whole or not at all."""
  if not path.exists():
    return
  lines = path.read_text(encoding='utf-8').splitlines(keepends=True)
  kept = [line for line in lines if line.endswith('\n') and json.loads(line)['step'] <= step]
  if kept != lines:
    temporary = path.with_suffix('.tmp')
    temporary.write_text(''.join(kept), encoding='utf-8')
    os.replace(temporary, path)
