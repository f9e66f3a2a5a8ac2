"""The statistics of all studies: means with intervals, and differences within seeds.

A run's values are by seed: {0: 2.31, 1: 2.29, …}, NaN where it has diverged. Runs of one seed see
the same tokens in the same order, so the difference of two runs is taken within each seed. That
removes what the runs of a seed have in common, and the interval is that of the differences. All
intervals are Student's, at 95%; none is widened for the number of comparisons beside it.
"""

import dataclasses
import math
from collections.abc import Mapping
from statistics import mean, stdev

Values = Mapping[int, float]


@dataclasses.dataclass(frozen=True)
class Interval:
  """A mean and half the width of its 95% interval.
  A single seed and the paper's value have no interval: `half` is None.
  """

  mean: float
  half: float | None = None
  n: int = 0
  sd: float = 0.0

  @property
  def low(self) -> float:
    return self.mean - (self.half or 0.0)

  @property
  def high(self) -> float:
    return self.mean + (self.half or 0.0)


def interval(values: Values) -> Interval | None:
  """The interval of the mean over the seeds that have not diverged; None if all have."""
  found = [values[seed] for seed in sorted(values) if math.isfinite(values[seed])]
  if len(found) < 2:
    return Interval(found[0], n=1) if found else None
  return Interval(mean(found), half_width(stdev(found), len(found)), len(found), stdev(found))


def half_width(sd: float, n: int) -> float:
  """Half the width of the 95% interval of a mean of `n` values with standard deviation `sd`."""
  from scipy.special import stdtrit

  return float(stdtrit(n - 1, 0.975)) * sd / math.sqrt(n)


def p_value(found: Interval, bound: float) -> float:
  """The p-value of Student's two-sided test that the mean is `bound`: the interval at a level of
  1 − p ends there. The values must not all be the same.
  """
  from scipy.special import stdtr

  distance = abs(found.mean - bound)
  return 2 * float(stdtr(found.n - 1, -distance / (found.sd / math.sqrt(found.n))))


def difference(first: Values, second: Values) -> dict[int, float]:
  """first − second, for the seeds that both have."""
  return {seed: first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())}


def seeds_for(difference: float, sd: float, power: float = 0.9) -> int:
  """How many seeds find a true mean difference, not 0, with a probability of `power`: at 95%,
  two-sided, by Student's t. `sd`: the standard deviation of the differences within seeds.
  """
  n = 2
  while detectable(sd, n, power) > abs(difference):
    n += 1
  return n


def detectable(sd: float, n: int, power: float = 0.9) -> float:
  """The smallest true difference from 0, or from a bound, that `n` seeds find as in `seeds_for`."""
  from scipy.special import stdtrit

  return float(stdtrit(n - 1, 0.975) + stdtrit(n - 1, power)) * sd / math.sqrt(n)
