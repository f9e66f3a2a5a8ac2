"""The statistics and the rule of the verdicts."""

import dataclasses
import math

import numpy as np
import pytest

from experiments.studies import intervals, verdicts
from experiments.studies.verdicts import FAILS, HOLDS, UNDECIDED, Comparison, Role


@pytest.fixture
def stats():
  """Imported here: it takes seconds, and every worker imports every file."""
  from scipy import stats

  return stats


def test_an_interval_is_students(stats):
  values = {2: 1.31, 0: 1.25, 1: 1.42, 5: 1.2}
  found = intervals.interval(values)
  low, high = stats.t.interval(
    0.95, 3, np.mean(list(values.values())), stats.sem(list(values.values()))
  )
  assert (found.low, found.high, found.n) == (pytest.approx(low), pytest.approx(high), 4)
  by_hand = intervals.interval({0: 1.0, 1: 2.0, 2: 3.0})  # t of 2 degrees of freedom is 4.3027
  assert by_hand.half == pytest.approx(4.3027 / math.sqrt(3), abs=1e-4) and by_hand.mean == 2.0
  assert intervals.interval({0: 1.5}).half is None and intervals.interval({}) is None


def test_a_difference_is_within_seeds():
  first, second = {0: 5.0, 1: 7.0, 2: 6.1}, {0: 4.9, 1: 6.9, 3: 1.0}
  found = intervals.interval(intervals.difference(first, second))
  assert (found.mean, found.half, found.n) == (pytest.approx(0.1), pytest.approx(0.0, abs=1e-12), 2)


@pytest.mark.parametrize(
  ('values', 'bounds', 'outcome'),
  [
    ((-0.10, -0.11, -0.12), {'below': 0.0}, HOLDS),
    ((0.10, 0.11, 0.12), {'below': 0.0}, FAILS),
    ((-0.10, 0.05, 0.01), {'below': 0.0}, UNDECIDED),
    ((-0.10,), {'below': 0.0}, UNDECIDED),
    ((), {'below': 0.0}, UNDECIDED),
    ((0.0, 0.0, 0.0), {'above': 0.0}, FAILS),  # neither is ahead, so the claimed one is not
    ((0.3, 0.31, 0.32), {'above': 0.25}, HOLDS),
    ((0.001, 0.002, -0.001), {'above': -0.02, 'below': 0.02}, HOLDS),
    ((0.101, 0.102, 0.099), {'above': -0.02, 'below': 0.02}, FAILS),
    ((-0.101, -0.102, -0.099), {'above': -0.02, 'below': 0.02}, FAILS),
    ((0.03, 0.01, 0.02), {'above': -0.02, 'below': 0.02}, UNDECIDED),
  ],
)
def test_outcomes(values, bounds, outcome):
  comparison = Comparison('a − b', dict(enumerate(values)), **bounds)
  assert comparison.outcome == outcome
  assert bool(comparison.would_decide) == (outcome == UNDECIDED)


@pytest.mark.parametrize(
  ('values', 'bounds', 'outcome'),
  [
    ((0.1, 0.11, 0.12), {'below': 0.5, 'at_most': True}, HOLDS),
    ((0.6, 0.61, 0.62), {'below': 0.5, 'at_most': True}, UNDECIDED),
    ((0.6, 0.61, 0.62), {'below': 0.5, 'at_least': True}, FAILS),
    ((0.1, 0.11, 0.12), {'below': 0.5, 'at_least': True}, UNDECIDED),
    ((0.1, 0.11, 0.12), {'above': 0.5, 'at_most': True}, FAILS),
    ((0.6, 0.61, 0.62), {'above': 0.5, 'at_least': True}, HOLDS),
    ((0.6, 0.61, 0.62), {'above': 0.5, 'at_most': True}, UNDECIDED),
    ((0.1, 0.11, 0.12), {'below': 0.5, 'at_most': True, 'at_least': True}, UNDECIDED),
  ],
)
def test_a_bound_decides_to_one_side(values, bounds, outcome):
  comparison = Comparison('a', dict(enumerate(values)), **bounds)
  assert comparison.outcome == outcome
  assert ('only a bound' in comparison.would_decide) == (outcome == UNDECIDED)


def test_what_would_decide_is_the_first_number_of_seeds_with_an_interval_beside_the_bound(stats):
  comparison = Comparison('a − b', {0: -0.02, 1: -0.01, 2: 0.01}, below=0.0)
  mean, sd = np.mean([-0.02, -0.01, 0.01]), np.std([-0.02, -0.01, 0.01], ddof=1)
  half = {n: stats.t.ppf(0.975, n - 1) * sd / math.sqrt(n) for n in range(2, 100)}
  n = comparison.seeds_needed
  assert half[n] < abs(mean) <= half[n - 1]
  assert comparison.would_decide == f'about {n} seeds would decide for it'
  against = Comparison('b − a', {0: 0.02, 1: 0.01, 2: -0.01}, below=0.0)
  assert against.would_decide == f'about {n} seeds would decide against it'
  assert Comparison('a − b', {0: -0.01, 1: 0.01}, below=0.0).seeds_needed is None


def test_a_comparison_with_a_diverged_run_is_undecided_and_says_so():
  comparison = Comparison('a − b', {0: -1.0, 1: math.nan, 2: -1.1}, below=0.0)
  assert (comparison.outcome, comparison.would_decide) == (
    UNDECIDED,
    'a run of seed 1 has diverged',
  )
  assert comparison.interval is None and intervals.interval(comparison.values).n == 2


@pytest.mark.parametrize(
  ('values', 'bounds', 'outcome'),
  [
    ((math.inf, 0.2, 0.21), {'above': 0.0}, HOLDS),
    ((math.inf, 0.2, 0.3), {'above': 0.0}, UNDECIDED),  # by the interval of the finite ones
    ((math.inf, -0.2, 0.3), {'above': 0.0}, UNDECIDED),
    ((math.inf, math.inf), {'below': 0.02}, FAILS),
    ((-math.inf, 0.01), {'below': 0.02}, UNDECIDED),  # one seed has no interval
    ((-math.inf, 0.01, 0.011), {'below': 0.02}, HOLDS),
    ((-math.inf, 0.019, 0.001, 0.0195, 0.0185), {'below': 0.02}, UNDECIDED),
    ((math.inf - math.inf, 1.0), {'below': 0.02}, UNDECIDED),  # both have diverged
    ((math.inf,), {'above': 0.0}, UNDECIDED),
  ],
)
def test_divergence_as_an_outcome(values, bounds, outcome):
  comparison = Comparison('a − b', dict(enumerate(values)), **bounds)
  assert comparison.outcome == outcome and bool(comparison.would_decide) == (outcome == UNDECIDED)


def test_verdicts():
  holding = Comparison('a − b', {0: -1.0, 1: -1.0}, below=0.0)
  failing = Comparison('c − d', {0: 1.0, 1: 1.0}, below=0.0)
  undecided = Comparison('e − f', {0: 1.0, 1: -1.5}, below=0.0)
  of = lambda *comparisons: verdicts.verdict(comparisons, 6, 6)
  assert of(holding, holding).outcome == HOLDS
  assert (
    of(holding, undecided, failing).outcome == FAILS
    and of(failing).reason == 'c − d is 1.0000 (claimed: below 0)'
  )
  assert of(holding, undecided).outcome == UNDECIDED
  assert of(undecided).reason.startswith('e − f is −0.2500 (about ')
  partial = verdicts.verdict([holding], 3, 15)
  assert (partial.outcome, partial.reason) == (UNDECIDED, '3 of 15 runs finished')


def test_a_loss_that_was_to_be_lower_may_be_shown_to_be_level():
  of = lambda *values, **rest: Comparison('a − b', dict(enumerate(values)), **{'below': 0.0} | rest)
  level = of(0.001, -0.001, 0.0, 0.002)
  assert level.is_level and level.outcome == UNDECIDED and level.would_decide.startswith('level')
  for other in (
    of(0.01, -0.02, 0.005, 0.0),  # its interval reaches beyond 0.02
    of(-0.001, -0.0011, -0.001),  # holds
    of(0.001, -0.001, 0.0, 0.002, below=0.001),  # has another bound
    of(0.001, -0.001, 0.0, 0.002, unit='share'),
    of(0.001, -0.001, 0.0, 0.002, at_most=True),
    of(0.001),
  ):
    assert not other.is_level
  holding = of(-1.0, -1.0)
  said = lambda *comparisons: verdicts.verdict(comparisons, 6, 6).outcome
  assert said(holding, level) == said(level) == verdicts.LEVEL
  assert said(level, of(1.0, 1.0)) == FAILS
  assert said(level, of(1.0, -1.5)) == UNDECIDED
  assert said(level, dataclasses.replace(level, role=Role.PREMISE)) == UNDECIDED


def test_only_comparisons_of_the_claim_decide_it():
  holding = Comparison('a − b', {0: -1.0, 1: -1.0}, below=0.0)
  failing = Comparison('c − d', {0: 1.0, 1: 1.0}, below=0.0)
  beside = dataclasses.replace(failing, role=Role.BESIDE)
  assert verdicts.verdict([holding, beside], 6, 6).outcome == HOLDS
  tried = dataclasses.replace(failing, role=Role.TRIED)
  assert verdicts.verdict([holding, tried], 6, 6) == verdicts.Verdict(HOLDS, 'a − b is −1.0000')
  assert (
    verdicts.verdict([failing, dataclasses.replace(holding, role=Role.BESIDE)], 6, 6).outcome
    == FAILS
  )
  assert (
    verdicts.verdict([holding, holding, beside], 6, 6).reason
    == 'a − b is −1.0000; a − b is −1.0000; beside the claim: c − d is 1.0000 (expected: below 0)'
  )


def test_a_claim_is_undecided_unless_what_it_presupposes_holds():
  holding = Comparison('a − b', {0: -1.0, 1: -1.0}, below=0.0)
  failing = Comparison('c − d', {0: 1.0, 1: 1.0}, below=0.0)
  undecided = Comparison('e − f', {0: 1.0, 1: -1.5}, below=0.0)
  presupposed = lambda comparison: dataclasses.replace(comparison, role=Role.PREMISE)
  of = lambda *comparisons: verdicts.verdict(comparisons, 6, 6)
  assert of(holding, presupposed(holding)) == verdicts.Verdict(HOLDS, 'a − b is −1.0000')
  void = of(holding, presupposed(failing), presupposed(undecided))
  assert void.outcome == UNDECIDED
  first, second = void.reason.split('; ')
  assert (
    first
    == 'c − d is 1.0000 (presupposed, but not below 0 here: only models that meet this could show '
    'the claim)'
  )
  assert second.startswith('e − f is −0.2500 (presupposed: about ')
  assert of(failing, presupposed(failing)) == verdicts.Verdict(
    FAILS, 'c − d is 1.0000 (claimed: below 0); c − d is 1.0000 (presupposed: below 0)'
  )
  diverged = Comparison('g − h', {0: -1.0, 1: math.nan}, below=0.0)
  assert (
    of(holding, presupposed(diverged)).reason == 'g − h (presupposed: a run of seed 1 has diverged)'
  )


def test_findings_are_said_in_words():
  words = ('a is {} above b', 'a is {} below b'), ('a is {} above c', 'a is {} below c')
  below, above = (
    Comparison('x', {0: mean - 0.001, 1: mean + 0.001}, below=1.0, words=each)
    for mean, each in zip((-0.0466, 0.0321), words, strict=True)
  )
  assert verdicts.verdict([below, above], 2, 2).reason == 'a is 0.047 below b, 0.032 above c'
  plain = Comparison('share', {0: 0.41, 1: 0.43}, below=1.0, digits=2)
  assert verdicts.verdict([above, plain], 2, 2).reason == 'a is 0.032 above c; share is 0.42'
  failing = dataclasses.replace(above, below=0.0)
  assert verdicts.verdict([failing], 2, 2).reason == 'a is 0.032 above c (claimed: below 0)'
  assert Comparison('x', {0: math.nan}, words=words[0]).in_words == 'x'


def test_what_is_the_same_for_all_seeds_is_decided_beside_others(stats):
  same = Comparison('idle', {0: 0.0, 1: 0.0, 2: 0.0}, above=0.0)
  clear = Comparison('clear', {0: 1.0, 1: 1.01, 2: 0.99}, above=0.0)
  assert same.p_value == 0.0 and verdicts.outcomes([same, clear]) == [FAILS, HOLDS]


def test_holms_correction_is_of_a_claims_comparisons_alone(stats):
  """A comparison with p between 0.025 and 0.05 is decided by its own interval, but two such in one
  claim are not: Holm's first step asks for 0.05 / 2.
  """
  generator = np.random.default_rng(0)
  noise = generator.normal(size=5)
  noise = (noise - noise.mean()) / noise.std(ddof=1)
  at = lambda p: dict(enumerate(noise - stats.t.ppf(1 - p / 2, 4) / math.sqrt(5)))
  of = lambda p, **rest: Comparison(f'p {p}', at(p), below=0.0, **rest)
  assert of(0.03).p_value == pytest.approx(0.03) and of(0.03).outcome == HOLDS
  assert verdicts.outcomes([of(0.03)]) == [HOLDS]
  # 0.001 < 0.05 / 2 and 0.03 < 0.05 / 1; of 0.03 and 0.04 neither is below 0.05 / 2.
  assert verdicts.outcomes([of(0.03), of(0.001)]) == [HOLDS, HOLDS]
  assert verdicts.outcomes([of(0.03), of(0.04)]) == [UNDECIDED, UNDECIDED]
  assert verdicts.outcomes([of(0.03), of(0.001), of(0.02)]) == [HOLDS, HOLDS, HOLDS]
  assert verdicts.outcomes([of(0.03), of(0.001), of(0.026)]) == [UNDECIDED, HOLDS, UNDECIDED]
  beside = [of(0.03), of(0.04, role=Role.BESIDE)]
  assert verdicts.outcomes(beside) == [HOLDS, HOLDS]
  premise = [of(0.03), of(0.04, role=Role.PREMISE)]
  assert verdicts.outcomes(premise) == [UNDECIDED, UNDECIDED]
  found = verdicts.verdict([of(0.03), of(0.04)], 2, 2)
  assert found.outcome == UNDECIDED and 'Holm' in found.reason


def test_what_lacks_runs_relaxes_nothing_for_the_others(stats):
  near = Comparison('near', {0: -0.5, 1: -1.5, 2: -1.0, 3: 0.1, 4: -0.9}, below=0.0)
  assert 0.025 < near.p_value < 0.05 and near.outcome == HOLDS
  diverged = Comparison('diverged', {0: -1.0, 1: math.nan}, below=0.0)
  single = Comparison('single', {0: -1.0}, below=0.0)
  for other in (diverged, single):
    assert other.p_value == 1.0
    assert verdicts.outcomes([near, other]) == [UNDECIDED, UNDECIDED]
  worse = Comparison('infinite', {0: math.inf, 1: math.inf}, above=0.0)  # an outcome
  assert worse.p_value == 0.0 and verdicts.outcomes([near, worse]) == [HOLDS, HOLDS]
  assert verdicts.verdict([dataclasses.replace(near, role=Role.BESIDE)], 5, 5).outcome == UNDECIDED


def test_the_p_value_is_of_the_nearest_bound(stats):
  values = {0: 0.011, 1: 0.013, 2: 0.009, 3: 0.014}
  found = Comparison('a', values, above=-0.02, below=0.02).p_value
  assert found == pytest.approx(stats.ttest_1samp(list(values.values()), 0.02).pvalue)


def test_seeds_for_a_power_find_the_difference_as_often():
  generator = np.random.default_rng(0)
  for difference, sd in ((0.03, 0.02), (0.01, 0.01), (0.05, 0.01)):
    n = intervals.seeds_for(difference, sd)
    draws = generator.normal(difference, sd, (20000, n))
    half = np.array([intervals.half_width(1.0, n)]) * draws.std(axis=1, ddof=1)
    found = (draws.mean(axis=1) - half > 0).mean()
    assert found > 0.88
    if n > 3:
      fewer = draws[:, : n - 1]
      half = intervals.half_width(1.0, n - 1) * fewer.std(axis=1, ddof=1)
      assert (fewer.mean(axis=1) - half > 0).mean() < 0.92
