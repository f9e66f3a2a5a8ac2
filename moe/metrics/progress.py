"""The progress line and its numbers: speed, time left, and how much of the machine a step uses."""

import time
from collections.abc import Mapping

import numpy as np

from moe.metrics import machine


class Progress:
  """Measures a run's steps. Pauses (evaluation, saving) do not count towards the speed."""

  def __init__(
    self, num_steps: int, tokens_per_step: int, flops_per_token: float, epochs: Mapping[str, float]
  ):
    """`epochs`: by domain, the share of its text that a step sees."""
    self._num_steps, self._tokens, self._flops = num_steps, tokens_per_step, flops_per_token
    self._epochs = epochs
    self._since, self._steps, self._paused, self._waited = time.perf_counter(), 0, 0.0, 0.0

  def step_done(self) -> None:
    self._steps += 1

  def pause(self, seconds: float) -> None:
    self._paused += seconds

  def waited_for_data(self, seconds: float) -> None:
    self._waited += seconds

  def rates(self, step: int) -> dict[str, object]:
    """Rates since the last call. Call it after waiting for the device.

    tokens_per_second, model_flops_per_second, `mfu` where the chips' peak is known; step_seconds,
    and data_wait_seconds, the part of them spent waiting for the next batch; memory_in_use and
    memory_peak, bytes; tokens_seen and epochs_by_domain, since the run began.
    """
    now = time.perf_counter()
    seconds = max(now - self._since - self._paused, 1e-9)
    rate, steps = self._steps * self._tokens / seconds, max(self._steps, 1)
    found = {
      'tokens_per_second': rate,
      'model_flops_per_second': rate * self._flops,
      **machine.mfu(rate * self._flops),
      'step_seconds': seconds / steps,
      'data_wait_seconds': self._waited / steps,
      **machine.memory(),
      'tokens_seen': step * self._tokens,
      'epochs_by_domain': {domain: step * share for domain, share in self._epochs.items()},
    }
    self._since, self._steps, self._paused, self._waited = now, 0, 0.0, 0.0
    return found

  def line(self, step: int, metrics: Mapping[str, object], is_sample: bool = False) -> str:
    """step 120/600 | loss 4.312 | … | 1:31 left.

    `is_sample`: the held-out loss covers only a part of the held-out text.
    """
    rate = metrics['tokens_per_second']
    left = (self._num_steps - step) * self._tokens / rate
    parts = [f'step {step}/{self._num_steps}', f'loss {metrics["loss"]:.4f}']
    if 'held_out_loss' in metrics:
      sample = ' (of a sample)' if is_sample else ''
      parts.append(f'held-out {metrics["held_out_loss"]:.4f}{sample}')
    if 'max_vio_N' in metrics:
      parts.append(f'MaxVio {np.max(metrics["max_vio_N"]):.2f}')
    if metrics.get('force_balanced_routing'):
      parts.append('routing forced')
    if metrics['bad_steps']:
      parts.append(f'skipped {metrics["bad_steps"]}')
    parts += [f'{rate:,.0f} tokens/s', f'{metrics["model_flops_per_second"] / 1e9:,.1f} GFLOP/s']
    if 'mfu' in metrics:
      parts.append(f'MFU {metrics["mfu"]:.0%}')
    used, peak = (metrics[name] / 2**30 for name in ('memory_in_use', 'memory_peak'))
    parts.append(f'{used:.1f} GiB (peak {peak:.1f})')
    if metrics['data_wait_seconds'] > 0.1 * metrics['step_seconds']:
      parts.append(f'waiting for data {metrics["data_wait_seconds"] / metrics["step_seconds"]:.0%}')
    return ' | '.join([*parts, f'{_duration(left)} left'])


def _duration(seconds):
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours}:{minutes:02}:{seconds:02}' if hours else f'{minutes}:{seconds:02}'
