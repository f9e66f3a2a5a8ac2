"""The comparisons that test a claim, and the one rule by which it holds, does not hold, is level or
is undecided.

experiments/reports/texts.py has the rule in words.
"""

import dataclasses
import enum
import math
from collections.abc import Sequence

from experiments.studies.intervals import Interval, Values, half_width, interval, p_value

HOLDS = 'holds'
FAILS = 'does not hold at this scale'
UNDECIDED = 'undecided'
# What "about the same loss" means, in nats: a third of the gap between GShard and
# DeepSeekMoE in the paper (0.059).
ABOUT = 0.02
LEVEL = f'level within {ABOUT:g} at this scale'
BOUND_MAY_BE_WIDE = (
  '"About" allows 0.02 of loss, a third of the gap between GShard and DeepSeekMoE in the paper. '
  'If the two are no further apart than that here, which table1 measures, '
  'being about as good as another model says little.'
)
_MOST_SEEDS = 1000
LOSS = 'loss'  # in nats a token
_LEVEL = 0.05


class Role(enum.Enum):
  """What a comparison is to the claim as it is worded.
  The value is a table's entry for whether it decides the claim.
  """

  CLAIM = 'yes'
  PREMISE = 'presupposed'  # unless it holds, a claim that holds says nothing
  BESIDE = 'no'  # what else the paper leads one to expect
  TRIED = 'no, only tried'  # a change that was tried to see whether it helps, expected by nobody


_DECIDE = (Role.CLAIM, Role.PREMISE)


@dataclasses.dataclass(frozen=True)
class Comparison:
  """A difference, by seed, expected between `above` and `below`.
  `paper`: the paper's difference, where it has one.

  A value may be infinite, where a study takes divergence for an outcome. Then there is no interval:
  all infinite ones must be within the bounds, or all outside, and the finite ones must say the
  same by theirs.
  `at_most`, `at_least`: the values are only upper, or lower, bounds of what is meant.
  `unit`: what the difference is of. `words`: the finding as a clause, one for a positive mean and
  one for a negative mean, with {} where its size goes.
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
  unit: str = LOSS
  words: tuple[str, str] | None = None

  @property
  def interval(self) -> Interval | None:
    """The interval of the mean. None also if a seed has diverged: the others would hide it."""
    return interval(self.values) if all(map(math.isfinite, self.values.values())) else None

  @property
  def diverged(self) -> list[int]:
    """The seeds without a difference, since one of their runs has diverged."""
    return [seed for seed in sorted(self.values) if math.isnan(self.values[seed])]

  @property
  def needs(self) -> str:
    if self.above == -self.below:
      return f'within ±{self.below:g}'
    return f'below {self.below:g}' if math.isfinite(self.below) else f'above {self.above:g}'

  @property
  def in_words(self) -> str:
    """What was found, with its number: '1+1/15 is 0.086 above 0+2/16'."""
    found = self.interval
    if found is None:
      apart = [str(seed) for seed in sorted(self.values) if math.isinf(self.values[seed])]
      return f'{self.what}: diverged with seed {", ".join(apart)}' if apart else self.what
    if self.words is None:
      return f'{self.what} is {found.mean:.{self.digits}f}'.replace('-', '−')
    digits = min(self.digits, 3)
    return self.words[found.mean < 0].format(f'{abs(found.mean):.{digits}f}')

  @property
  def _finite(self) -> 'Comparison | None':
    """This comparison of the seeds whose value is finite; None if there are none."""
    values = {seed: value for seed, value in self.values.items() if math.isfinite(value)}
    return dataclasses.replace(self, values=values) if values else None

  @property
  def p_value(self) -> float:
    """The p-value against the nearest bound. Where there is no interval, or all seeds say the same:
    0 if the outcome is decided, as by divergence, and 1 if it is not, as for want of runs. Where
    some seeds have diverged: that of the others.
    """
    found = self.interval
    if found is None and self.outcome != UNDECIDED and self._finite:
      return self._finite.p_value
    if found is None or not found.half:
      return 1.0 if self.outcome == UNDECIDED else 0.0
    return max(p_value(found, bound) for bound in (self.above, self.below) if math.isfinite(bound))

  @property
  def outcome(self) -> str:
    """The outcome by its own 95% interval alone; `outcomes` corrects for the others beside it."""
    if self.diverged or len(self.values) < 2:
      return UNDECIDED
    found = self.interval
    if found is None:
      apart = {
        HOLDS if self._is_inside(value) else FAILS
        for value in self.values.values()
        if math.isinf(value)
      }
      said = apart | ({self._finite.outcome} if self._finite else set())
      return said.pop() if len(said) == 1 else UNDECIDED
    return self._between(found.low, found.high)

  @property
  def is_level(self) -> bool:
    """Whether a loss that was expected on one side of another's is shown to be about the same."""
    bounds = [bound for bound in (self.above, self.below) if math.isfinite(bound)]
    found = self.interval
    return (
      self.unit == LOSS
      and not (self.at_most or self.at_least)
      and bounds == [0.0]
      and self.outcome == UNDECIDED
      and found is not None
      and found.half is not None
      and -ABOUT <= found.low <= found.high <= ABOUT
    )

  def _between(self, low: float, high: float) -> str:
    """The outcome if the value, or the bound on it, is from `low` to `high`."""
    low, high = -math.inf if self.at_most else low, math.inf if self.at_least else high
    if self._is_inside(low) and self._is_inside(high):
      return HOLDS
    return FAILS if high <= self.above or low >= self.below else UNDECIDED

  def _is_inside(self, value: float) -> bool:
    """Whether a value is within the bounds. An infinite bound excludes no value, even infinity."""
    return (value > self.above or self.above == -math.inf) and (
      value < self.below or self.below == math.inf
    )

  @property
  def seeds_needed(self) -> int | None:
    """How many seeds would decide it if mean and spread stayed as they are;
    None without an interval, and if they are more than anyone runs.
    """
    found = self.interval
    if found is None or found.half is None:
      return None
    nearest = min(abs(found.mean - bound) for bound in (self.above, self.below))
    return next((n for n in range(2, _MOST_SEEDS + 1) if half_width(found.sd, n) < nearest), None)

  @property
  def would_decide(self) -> str:
    """What would decide it, in words; '' if it is decided."""
    if self.outcome != UNDECIDED:
      return ''
    if self.diverged:
      return f'a run of seed {", ".join(map(str, self.diverged))} has diverged'
    if len(self.values) < 2:
      return 'an interval needs at least 2 seeds'
    if self.interval is None:
      return 'seeds that diverge do not say the same as the others'
    if self.is_level:
      return f'level, within {ABOUT:g} of the same loss'
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


def outcomes(comparisons: Sequence[Comparison]) -> list[str]:
  """The outcome of each comparison. Holm's method corrects those that decide a claim for their
  number m: the smallest p-value has to be below 0.05 ÷ m, the next below 0.05 ÷ (m − 1), and so on;
  from the first that is not, all are undecided. Those beside the claim keep their own outcome.
  """
  family = [number for number, each in enumerate(comparisons) if each.role in _DECIDE]
  found, rejected = [each.outcome for each in comparisons], True
  for left, number in zip(
    range(len(family), 0, -1), sorted(family, key=lambda number: comparisons[number].p_value)
  ):
    # The last needs no correction: its own interval decides.
    rejected = rejected and (left == 1 or comparisons[number].p_value < _LEVEL / left)
    if not rejected:
      found[number] = UNDECIDED
  return found


def why_open(comparison: Comparison) -> str:
  """What would decide a comparison that is undecided, in words."""
  if comparison.outcome == UNDECIDED:
    return comparison.would_decide
  return "decided by its own interval, but not after Holm's correction: more seeds may decide it"


def verdict(comparisons: Sequence[Comparison], finished: int, expected: int) -> Verdict:
  """The verdict by the rule, undecided until all runs have finished. Comparisons that are only
  beside the claim decide nothing; the reason ends with those that do not hold.
  """
  if finished < expected:
    return Verdict(UNDECIDED, f'{finished} of {expected} runs finished')
  decided = list(zip(comparisons, outcomes(comparisons)))
  claimed, premises, also = (
    [pair for pair in decided if pair[0].role is role]
    for role in (Role.CLAIM, Role.PREMISE, Role.BESIDE)
  )
  if not claimed:
    return Verdict(UNDECIDED, 'no comparison decides the claim')
  found = _decided(claimed, premises)
  unmet = [f'{each.in_words} (expected: {each.needs})' for each, out in also if out == FAILS]
  if not unmet:
    return found
  return Verdict(found.outcome, f'{found.reason}; beside the claim: {"; ".join(unmet)}')


def _decided(claimed, premises) -> Verdict:
  """The verdict by (comparison, outcome) of those that count."""
  failed = [each for each, outcome in claimed if outcome == FAILS]
  if failed:
    reasons = [f'{each.in_words} (claimed: {each.needs})' for each in failed]
    reasons += [
      f'{each.in_words} (presupposed: {each.needs})' for each, out in premises if out != HOLDS
    ]
    return Verdict(FAILS, '; '.join(reasons))
  open_ones = [pair for pair in (*claimed, *premises) if pair[1] != HOLDS]
  if open_ones and all(each.role is Role.CLAIM and each.is_level for each, _ in open_ones):
    return Verdict(LEVEL, _in_words([each for each, _ in open_ones]))
  if open_ones:
    reasons = [f'{each.in_words} ({_why_open(each, outcome)})' for each, outcome in open_ones]
    return Verdict(UNDECIDED, '; '.join(reasons))
  return Verdict(HOLDS, _in_words([each for each, _ in claimed]))


def _in_words(comparisons: Sequence[Comparison]) -> str:
  """What several comparisons found, in words; a beginning that repeats the last is left out."""
  begins = [each.words[0].partition('{}')[0] if each.words else '' for each in comparisons]
  before, said = '', ''
  for each, begin in zip(comparisons, begins, strict=True):
    goes_on = bool(begin) and begin == before and each.interval is not None
    said += f', {each.in_words[len(begin) :]}' if goes_on else f'; {each.in_words}'
    before = begin
  return said[2:]


def _why_open(comparison: Comparison, outcome: str) -> str:
  if comparison.role is not Role.PREMISE:
    return why_open(comparison)
  if outcome == FAILS:
    return (
      f'presupposed, but not {comparison.needs} here: '
      'only models that meet this could show the claim'
    )
  return f'presupposed: {why_open(comparison)}'
