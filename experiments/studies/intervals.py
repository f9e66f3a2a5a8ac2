"""The statistics of all studies, and the one rule by which a claim holds,
does not hold or is undecided.

experiments/reports/texts.py has the rule in words.

A run's values are by seed: {0: 2.31, 1: 2.29, …}, NaN where it has diverged. Runs of one seed see
the same tokens in the same order, so a difference of two runs is taken within each seed, which
removes what the seeds have in common, and its interval is that of the differences. All intervals
are Student's, at 95%; none is widened for the number of comparisons beside it.
"""

import dataclasses
import enum
import math
from collections.abc import Mapping, Sequence
from statistics import mean, stdev

HOLDS = 'holds'
FAILS = 'does not hold at this scale'
UNDECIDED = 'undecided'
# What "about the same loss" means, in nats: a third of what is between GShard and
# DeepSeekMoE in the paper (0.059).
ABOUT = 0.02
BOUND_MAY_BE_WIDE = (
  '"About" allows 0.02 of loss, a third of what is between GShard and DeepSeekMoE in the paper. '
  'Where they are no further apart than that here, which table1 measures, '
  'being about as good as another says little.'
)
_MOST_SEEDS = 1000

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


def difference(first: Values, second: Values) -> dict[int, float]:
  """first − second, of the seeds that both have."""
  return {seed: first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())}


class Role(enum.Enum):
  """What a comparison is to the claim as it is worded; the value:
  whether it decides the claim, as a table says it.
  """

  CLAIM = 'yes'
  PREMISE = 'presupposed'  # that the claim holds says nothing unless this does
  BESIDE = 'no'  # what else the paper leads one to expect


@dataclasses.dataclass(frozen=True)
class Comparison:
  """A difference, by seed, expected between `above` and `below`.
  `paper`: the paper's, where it has one.

  A value may be infinite, where a study takes divergence for an outcome: there is no interval then,
  and what holds must hold for every seed.
  `at_most`, `at_least`: the values are only upper, or lower, bounds of what is meant.
  """

  what: str
  values: Values
  above: float = -math.inf
  below: float = math.inf
  paper: float | None = None
  digits: int = 4
  role: Role = Role.CLAIM
  at_most: bool = False
  at_least: bool = False

  @property
  def interval(self) -> Interval | None:
    """None also where a seed has diverged: the mean of the others would hide it."""
    return interval(self.values) if all(map(math.isfinite, self.values.values())) else None

  @property
  def diverged(self) -> list[int]:
    """The seeds of which it lacks a run that has diverged."""
    return [seed for seed in sorted(self.values) if math.isnan(self.values[seed])]

  @property
  def needs(self) -> str:
    if self.above == -self.below:
      return f'within ±{self.below:g}'
    return f'below {self.below:g}' if math.isfinite(self.below) else f'above {self.above:g}'

  @property
  def outcome(self) -> str:
    if self.diverged or len(self.values) < 2:
      return UNDECIDED
    found = self.interval
    if found is None:
      inside = set(map(self._is_inside, self.values.values()))
      return UNDECIDED if len(inside) > 1 else HOLDS if inside == {True} else FAILS
    return self._between(found.low, found.high)

  def _between(self, low: float, high: float) -> str:
    """The outcome if the value is from `low` to `high`, or what bounds it is."""
    low, high = -math.inf if self.at_most else low, math.inf if self.at_least else high
    if self._is_inside(low) and self._is_inside(high):
      return HOLDS
    return FAILS if high <= self.above or low >= self.below else UNDECIDED

  def _is_inside(self, value: float) -> bool:
    """A bound that is infinite is none, also for an infinite value."""
    return (value > self.above or self.above == -math.inf) and (
      value < self.below or self.below == math.inf
    )

  @property
  def seeds_needed(self) -> int | None:
    """How many seeds would decide if mean and spread stayed as they are;
    None if more than anyone runs.
    """
    found = self.interval
    if found is None or found.half is None:
      return None
    nearest = min(abs(found.mean - bound) for bound in (self.above, self.below))
    return next((n for n in range(2, _MOST_SEEDS + 1) if half_width(found.sd, n) < nearest), None)

  @property
  def decides(self) -> str:
    """What would decide it, in words; '' if it is decided."""
    if self.outcome != UNDECIDED:
      return ''
    if self.diverged:
      return f'a run of seed {", ".join(map(str, self.diverged))} has diverged'
    if len(self.values) < 2:
      return 'at least 2 seeds give an interval'
    if self.interval is None:
      return 'seeds differ in whether they diverge'
    in_the_end = self._between(self.interval.mean, self.interval.mean)
    if in_the_end == UNDECIDED:
      return (
        'more seeds would not decide it: it is only a bound, '
        'which runs nearer to the point would narrow'
      )
    if self.seeds_needed:
      return (
        f'about {self.seeds_needed} seeds would decide '
        f'{"for" if in_the_end == HOLDS else "against"} it'
      )
    return f'not even {_MOST_SEEDS:,} seeds would decide, but larger models or longer runs may'


@dataclasses.dataclass(frozen=True)
class Verdict:
  outcome: str
  reason: str


def verdict(comparisons: Sequence[Comparison], finished: int, expected: int) -> Verdict:
  """By the rule, once all runs are there."""
  if finished < expected:
    return Verdict(UNDECIDED, f'{finished} of {expected} runs finished')
  claimed, premises = (
    [each for each in comparisons if each.role is role] for role in (Role.CLAIM, Role.PREMISE)
  )
  failed = [each for each in claimed if each.outcome == FAILS]
  if failed:
    return Verdict(FAILS, '; '.join(f'{each.what} is not {each.needs}' for each in failed))
  open_ones = [each for each in (*claimed, *premises) if each.outcome != HOLDS]
  if open_ones:
    return Verdict(UNDECIDED, '; '.join(f'{each.what} ({_why_open(each)})' for each in open_ones))
  return Verdict(
    HOLDS, f'all {len(claimed)} comparisons that decide it hold' if len(claimed) > 1 else ''
  )


def _why_open(comparison: Comparison) -> str:
  if comparison.role is not Role.PREMISE:
    return comparison.decides
  if comparison.outcome == FAILS:
    return (
      f'presupposed, and not {comparison.needs} here: '
      'only models of which it is could show the claim'
    )
  return f'presupposed: {comparison.decides}'
