"""Measures of specialisation, against loops."""

import itertools
import math

import numpy as np
import pytest

from moe import analysis

N, E = 2, 6


def _choices(tokens, k, seed=0):
  """experts_NTK, drawn with unequal probabilities."""
  generator = np.random.default_rng(seed)
  p_E = np.arange(1, E + 1) / np.arange(1, E + 1).sum()
  draw = lambda: [generator.choice(E, k, replace=False, p=p_E) for _ in range(tokens)]
  return np.array([draw() for _ in range(N)])


def test_load_information_and_effective_experts_against_loops():
  experts_NTK, sequences, domains = _choices(60, 2), 10, 3
  sequence_T, domain_X = np.arange(60) % sequences, np.arange(sequences) % domains
  choices_NXE = np.zeros((N, sequences, E), np.int64)
  for n, t in np.ndindex(N, 60):
    for e in experts_NTK[n, t]:
      choices_NXE[n, sequence_T[t], e] += 1
  counts_NGE = analysis.by_group(choices_NXE, domain_X, domains)
  load_NGE, effective_NG = (
    analysis.load(counts_NGE),
    analysis.effective_experts(counts_NGE),
  )
  bits_N = analysis.mutual_information(counts_NGE)
  for n in range(N):
    group_of = domain_X[sequence_T]
    joint_GE = np.zeros((domains, E))
    for t in range(60):
      for e in experts_NTK[n, t]:
        joint_GE[group_of[t], e] += 1 / 120
    truth = 0.0
    for g, e in np.ndindex(domains, E):
      assert load_NGE[n, g, e] == pytest.approx(E * joint_GE[g, e] / sum(joint_GE[g]))
      if joint_GE[g, e]:
        truth += joint_GE[g, e] * math.log2(joint_GE[g, e] / sum(joint_GE[g]) / sum(joint_GE[:, e]))
    assert bits_N[n] == pytest.approx(truth, abs=1e-12)
    for g in range(domains):
      shares = [x / E for x in load_NGE[n, g]]
      assert effective_NG[n, g] == pytest.approx(
        math.exp(-sum(x * math.log(x) for x in shares if x))
      )


def test_measures_at_their_ends():
  assert analysis.effective_experts(np.array([[5, 5, 5], [0, 7, 0]])) == pytest.approx([3, 1])
  assert np.isnan(analysis.load(np.zeros((1, 3), np.int64))).all()
  # Each domain has an expert of its own, so a choice tells the domain: 1 bit.
  # With the domains shuffled, it tells only what chance does.
  own_NXE = np.tile(np.eye(2, dtype=np.int64), (1, 20, 1))
  told = analysis.information(own_NXE, np.arange(40) % 2, 2)
  assert told.bits_N == pytest.approx([1])
  # Chance is about 1 / (2 ln 2 · 40), the bias of one degree of freedom.
  assert 0.005 < told.chance_N[0] < 0.05
  assert told.share_N == pytest.approx(1 - told.chance_N)
  assert analysis.information(own_NXE, np.zeros(40, int), 1).share_N == pytest.approx([0])


def test_sequences_that_differ_for_no_reason_of_domain_tell_nothing_beyond_chance():
  """Each sequence favours experts of its own. The plug-in estimate alone would take that for
  a difference between domains.
  """
  generator = np.random.default_rng(0)
  choices_NXE = np.stack(
    [generator.multinomial(200, generator.dirichlet(np.full(E, 0.3)), size=1)[0] for _ in range(24)]
  )
  told = analysis.information(choices_NXE[None], np.arange(24) % 2, 2)
  assert told.bits_N[0] > 0.05
  assert abs(told.share_N[0]) < 0.05


@pytest.mark.parametrize('k', [1, 2, 4])
def test_co_activation_against_loops(k):
  experts_NTK = _choices(80, k)
  pairs_NEE = np.zeros((N, E, E), np.int64)
  for n, t in np.ndindex(N, 80):
    for i, j in itertools.product(experts_NTK[n, t], repeat=2):
      pairs_NEE[n, i, j] += 1
  lift_NEE = analysis.co_activation(pairs_NEE)
  for n, i, j in np.ndindex(N, E, E):
    if i == j or k == 1:
      assert np.isnan(lift_NEE[n, i, j])
      continue
    has_i, has_j = ([e in chosen for chosen in experts_NTK[n]] for e in (i, j))
    both = sum(a and b for a, b in zip(has_i, has_j)) / 80
    by_chance = (k - 1) * E / (k * (E - 1))
    assert lift_NEE[n, i, j] == pytest.approx(
      both / (sum(has_i) / 80 * sum(has_j) / 80 * by_chance)
    )


def test_co_activation_of_every_pair_equally_often_is_one():
  # Each of the 15 pairs is chosen once, so an expert is in five of them.
  pairs_EE = np.full((E, E), 1) + np.eye(E, dtype=int) * (E - 2)
  lift_EE = analysis.co_activation(pairs_EE[None])[0]
  assert lift_EE[~np.eye(E, dtype=bool)] == pytest.approx(1)


def test_co_activation_where_tokens_choose_different_numbers():
  """Every expert is chosen once alone, and every pair once: no two go together more often than by
  chance.
  """
  pairs_EE = np.full((E, E), 1) + np.eye(E, dtype=int) * (E - 1)
  tokens = E + E * (E - 1) // 2
  lift_EE = analysis.co_activation(pairs_EE[None], tokens)[0]
  assert lift_EE[~np.eye(E, dtype=bool)] == pytest.approx(1)
