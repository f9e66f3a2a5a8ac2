"""One measurement: the keys of every suite (name, ratio_median, ratio_min, ratio_max, rounds, bar),
and those of the device suite.

An op's ratio is its error over its tolerance, and its bar is 1. For two things timed in turn it is
the ratio of their times. Otherwise it is null. `failed`, `cannot_run` and `left_out` say in one
line why nothing was measured.
"""

import statistics
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from moe import chips
from moe.errors import one_line

# {key that says why nothing was measured: the report's title of such records}.
NOT_MEASURED = {
  'failed': 'Failed',
  'cannot_run': 'Does not run there',
  'left_out': 'Left out',
}
_WITHOUT_RATIO = {
  'ratio_median': None,
  'ratio_min': None,
  'ratio_max': None,
  'rounds': 0,
  'bar': None,
}


def record(name: str, **more) -> dict:
  """A record, without a ratio unless `more` has one: it may override the keys of every suite."""
  return {'name': name, **_WITHOUT_RATIO, **more}


def failed(name: str, error: Exception) -> dict:
  return record(name, failed=f'{type(error).__name__}: {one_line(error)}')


def times(seconds: Sequence[float]) -> dict:
  """The keys of a record on the times of one call, from its seconds round by round."""
  return {
    'ms': 1e3 * statistics.median(seconds),
    'ms_min': 1e3 * min(seconds),
    'ms_max': 1e3 * max(seconds),
    'rounds': len(seconds),
  }


def rates(ms: float, flops: float, moved: float, dtype: str = 'bfloat16') -> dict:
  """The rates at which the least FLOPs and bytes that a result needs are done, and their shares of
  the chip's peaks.

  Shares are null for an unknown chip, and for FLOPs in float32, whose peak is not known.
  0 FLOPs or bytes are not counted: their rate is null.
  """
  peaks = chips.peaks(jax.devices()[0].device_kind)
  second = lambda amount: amount / ms * 1e3 if amount else None
  share = lambda amount, peak: second(amount) / peak if amount and peak else None
  return {
    'flops_per_second': second(flops),
    'bytes_per_second': second(moved),
    'share_of_peak_flops': share(flops, peaks and jnp.dtype(dtype).itemsize == 2 and peaks.flops),
    'share_of_peak_bytes': share(moved, peaks and peaks.hbm),
  }
