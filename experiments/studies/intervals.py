"""The statistics of all studies: means with intervals, and differences within seeds.

A run's values are by seed: {0: 2.31, 1: 2.29, …}, NaN where it has diverged. Runs of one seed see
the same tokens in the same order, so a difference of two runs is taken within each seed, which
removes what the seeds have in common, and its interval is that of the differences. All intervals
are Student's, at 95%; none is widened for the number of comparisons beside it.
"""

import dataclasses
import math
from collections.abc import Mapping
from statistics import mean, stdev

Values = Mapping[int, float]


@dataclasses.dataclass(frozen=True)
class Interval:
  """A mean and half the width of its 95% interval;
  None where there is none, of a single seed or the paper's value.
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
  """Of the mean over the seeds that have not diverged; None without any."""
  found = [values[seed] for seed in sorted(values) if math.isfinite(values[seed])]
  if len(found) < 2:
    return Interval(found[0], n=1) if found else None
  return Interval(mean(found), half_width(stdev(found), len(found)), len(found), stdev(found))


def half_width(sd: float, n: int) -> float:
  """Half of the 95% interval of a mean of `n` values with standard deviation `sd`."""
  from scipy.special import stdtrit

  return float(stdtrit(n - 1, 0.975)) * sd / math.sqrt(n)


def p_value(found: Interval, bound: float) -> float:
  """Of Student's test, two-sided, that the mean is `bound`: at 1 − p the interval ends there. Of
  values that are not all the same.
  """
  from scipy.special import stdtr

  distance = abs(found.mean - bound)
  return 2 * float(stdtr(found.n - 1, -distance / (found.sd / math.sqrt(found.n))))


def difference(first: Values, second: Values) -> dict[int, float]:
  """first − second, of the seeds that both have."""
  return {seed: first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())}


def seeds_for(difference: float, sd: float, power: float = 0.9) -> int:
  """How many seeds find a true mean difference, not 0, whose values within seeds vary by `sd`, with
  this probability: at 95%, two-sided, by Student's t.
  """
  n = 2
  while detectable(sd, n, power) > abs(difference):
    n += 1
  return n


def detectable(sd: float, n: int, power: float = 0.9) -> float:
  """The smallest true difference, from 0 or another bound, that `n` seeds find so."""
  from scipy.special import stdtrit

  return float(stdtrit(n - 1, 0.975) + stdtrit(n - 1, power)) * sd / math.sqrt(n)
