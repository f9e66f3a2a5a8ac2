"""The balance terms against the loops over tokens. N layers, B sequences of L tokens, E experts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.config import keys
from moe.losses import LOSSES, Statistics, Totals, weight
from moe.ops.router import RoutingStats
from tests import oracles
from tests.small import assert_close, small_config

N, B, L, E = 2, 4, 5, 6


@functools.partial(jax.jit, static_argnums=1)
def balance_terms(stats, config, totals, batch_counts_NE=None):
  """{name: weighted term}, as the objective adds them."""
  statistics = Statistics.of(stats, config.moe, totals, batch_counts_NE)
  return {
    name: weight(config, name) * term(statistics, config, totals) for name, term in LOSSES.items()
  }


def test_every_term_has_a_weight_among_the_keys():
  config = small_config(**{'moe.router_z_weight': 0.25})
  assert weight(config, 'router_z') == 0.25
  assert all(f'moe.{name}_weight' in keys() for name in LOSSES)


def _config(**changes):
  return small_config(**{f'moe.{key}': value for key, value in changes.items()})


def _routing(k, seed=0):
  """(logits of every layer and token, their affinities, the chosen experts, a mask with one row of
  padding).
  """
  generator = np.random.default_rng(seed)
  logits_NBLE = generator.normal(size=(N, B, L, E))
  is_token_BL = generator.random((B, L)) < 0.7
  is_token_BL[2] = False
  affinities = np.array([oracles.softmax(x) for x in logits_NBLE.reshape(-1, E)]).reshape(
    N, B, L, E
  )
  chosen = np.array([oracles.largest(x, k) for x in affinities.reshape(-1, E)]).reshape(N, B, L, k)
  return logits_NBLE, affinities, chosen, is_token_BL


def _stats(logits_NBLE, affinities, chosen, is_token_BL):
  counts, sums = np.zeros((N, B, E), np.int32), np.zeros((N, B, E), np.float32)
  z_sums = np.zeros((N, B), np.float32)
  for n, b, t in np.ndindex(N, B, L):
    if is_token_BL[b, t]:
      counts[n, b, chosen[n, b, t]] += 1
      sums[n, b] += affinities[n, b, t]
      z_sums[n, b] += oracles.log_sum_exp(logits_NBLE[n, b, t]) ** 2
  return RoutingStats(
    jnp.asarray(counts), jnp.asarray(sums), jnp.zeros((N, B)), jnp.asarray(z_sums)
  )


def _totals(is_token_BL):
  return Totals.of(jnp.asarray(is_token_BL, jnp.float32), jnp.asarray(is_token_BL, jnp.int32))


@pytest.mark.parametrize('scope', ['sequence', 'batch'])
def test_where_tokens_take_fewer_experts_the_load_is_over_what_they_take(scope):
  """K of Eq. 13 is the mean number of experts taken, whatever experts_per_token is."""
  _, affinities, chosen, is_token_BL = _routing(4)
  generator = np.random.default_rng(1)
  taken_NBL = generator.integers(1, 5, (N, B, L))
  counts, sums = np.zeros((N, B, E), np.int32), np.zeros((N, B, E), np.float32)
  for n, b, t in np.ndindex(N, B, L):
    if is_token_BL[b, t]:
      counts[n, b, chosen[n, b, t, : taken_NBL[n, b, t]]] += 1
      sums[n, b] += affinities[n, b, t]
  changes = {'experts_per_token': 4, 'gate_mass': 0.5, 'expert_balance_weight': 1.0}
  config = _config(balance_scope=scope, **changes)
  stats = RoutingStats(jnp.asarray(counts), jnp.asarray(sums), jnp.zeros((N, B)), jnp.zeros((N, B)))
  found = balance_terms(stats, config, _totals(is_token_BL))['expert_balance']
  tokens_B = is_token_BL.sum(axis=1)
  rows = [(b,) for b in range(B) if tokens_B[b]] if scope == 'sequence' else [tuple(range(B))]
  truth = 0.0
  for n in range(N):
    for row in rows:
      count_E, sum_E = counts[n, row, :].sum(axis=0), sums[n, row, :].sum(axis=0)
      f_E = count_E * E / count_E.sum()
      truth += (f_E * sum_E / tokens_B[list(row)].sum()).sum() / len(rows)
  assert float(found) == pytest.approx(truth, rel=1e-5)
  three_each = 3 * (tokens_B > 0)[None, :, None] * np.ones((N, B, E), np.int32)
  even = stats._replace(counts_BE=jnp.asarray(three_each))
  found = balance_terms(even, config, _totals(is_token_BL))['expert_balance']
  assert float(found) == pytest.approx(N, rel=1e-5)  # 1 a layer


@pytest.mark.parametrize('scope', ['sequence', 'batch'])
@pytest.mark.parametrize(('k', 'groups'), [(1, 1), (2, 3), (4, 2), (6, 6)])
def test_balance_terms(scope, k, groups):
  logits, affinities, chosen, is_token_BL = _routing(k)
  config = _config(
    experts_per_token=k,
    expert_balance_weight=0.01,
    device_balance_weight=0.05,
    device_groups=groups,
    balance_scope=scope,
    router_z_weight=0.001,
  )
  stats = _stats(logits, affinities, chosen, is_token_BL)
  terms = balance_terms(stats, config, _totals(is_token_BL))
  of_layers = lambda loss: sum(
    oracles.over_scope(loss, affinities[n], chosen[n], is_token_BL, scope) for n in range(N)
  )
  expert = functools.partial(oracles.expert_balance, num_experts=E)
  device = functools.partial(oracles.device_balance, num_experts=E, groups=groups)
  assert float(terms['expert_balance']) == pytest.approx(0.01 * of_layers(expert), rel=1e-5)
  assert float(terms['device_balance']) == pytest.approx(0.05 * of_layers(device), rel=1e-5)
  z = sum(oracles.router_z(logits[n], is_token_BL) for n in range(N))
  assert float(terms['router_z']) == pytest.approx(0.001 * z, rel=1e-5)


@pytest.mark.parametrize('scope', ['sequence', 'batch'])
def test_gradient_of_the_balance_terms_flows_through_the_probabilities(scope):
  """dloss/dP_i = α f_i, since f counts choices and has no gradient."""
  logits, affinities, chosen, is_token_BL = _routing(2)
  config = _config(expert_balance_weight=0.01, balance_scope=scope)
  stats, totals = _stats(logits, affinities, chosen, is_token_BL), _totals(is_token_BL)
  term = lambda sums: balance_terms(stats._replace(probability_sums_BE=sums), config, totals)[
    'expert_balance'
  ]
  gradient = np.asarray(jax.jit(jax.grad(term))(stats.probability_sums_BE))
  rows = [b for b in range(B) if is_token_BL[b].any()]
  for n, b in np.ndindex(N, B):
    if b not in rows:
      if scope == 'sequence':
        assert (gradient[n, b] == 0).all()
      continue
    members = [b] if scope == 'sequence' else rows
    tokens = [(r, t) for r in members for t in np.flatnonzero(is_token_BL[r])]
    load, _ = oracles.load_and_probability(
      [affinities[n][t] for t in tokens], [list(chosen[n][t]) for t in tokens], num_experts=E
    )
    share = len(tokens) * (len(rows) if scope == 'sequence' else 1)
    assert_close(gradient[n, b], 0.01 * np.array(load) / share, 1e-5)


@pytest.mark.parametrize('scope', ['sequence', 'batch'])
@pytest.mark.parametrize('groups', [1, 3, 6])
def test_uniform_routing_gives_exactly_alpha(scope, groups):
  """In each of three sequences of one layer, six tokens choose experts (0, 1), (2, 3), (4, 5) twice
  each, and all affinities are 1/6.
  """
  config = _config(
    expert_balance_weight=0.01,
    device_balance_weight=0.05,
    device_groups=groups,
    balance_scope=scope,
  )
  counts = jnp.full((1, 3, E), 2)
  stats = RoutingStats(counts, jnp.ones((1, 3, E)), jnp.zeros((1, 3)), jnp.zeros((1, 3)))
  terms = balance_terms(stats, config, _totals(np.ones((3, 6), bool)))
  assert float(terms['expert_balance']) == pytest.approx(0.01, rel=1e-6)
  assert float(terms['device_balance']) == pytest.approx(0.05, rel=1e-6)


def test_balance_by_hand():
  """With E = 2 and K = 1, 2 tokens both go to expert 0 with affinity 3/4: f = (2, 0),
  P = (3/4, 1/4), Σ f P = 3/2.
  """
  config = _config(
    num_experts=2, experts_per_token=1, expert_balance_weight=1.0, device_balance_weight=1.0
  )
  stats = RoutingStats(
    jnp.array([[[2, 0]]]), jnp.array([[[1.5, 0.5]]]), jnp.zeros((1, 1)), jnp.zeros((1, 1))
  )
  terms = balance_terms(stats, config, _totals(np.ones((1, 2), bool)))
  assert float(terms['expert_balance']) == pytest.approx(1.5)
  assert float(terms['device_balance']) == pytest.approx(1.0)  # one group: f' = 1, P' = 1


@pytest.mark.parametrize('scope', ['sequence', 'batch'])
def test_the_parts_of_a_batch_add_up(scope):
  logits, affinities, chosen, is_token_BL = _routing(2)
  config = _config(
    expert_balance_weight=0.01,
    device_balance_weight=0.05,
    device_groups=2,
    balance_scope=scope,
    router_z_weight=0.1,
  )
  stats, totals = _stats(logits, affinities, chosen, is_token_BL), _totals(is_token_BL)
  whole = balance_terms(stats, config, totals)
  counts_NE = stats.counts_BE.sum(axis=1)
  cut = lambda start, stop: jax.tree.map(lambda x: x[:, start:stop], stats)
  parts = [
    balance_terms(part, config, totals, counts_NE) for part in (cut(0, 1), cut(1, 3), cut(3, 4))
  ]
  assert_close(jax.tree.map(lambda *x: sum(x), *parts), whole, 1e-6)


def test_a_batch_of_padding_is_no_division_by_zero():
  stats = RoutingStats(
    jnp.zeros((N, B, E), jnp.int32), jnp.zeros((N, B, E)), jnp.zeros((N, B)), jnp.zeros((N, B))
  )
  for scope in ('sequence', 'batch'):
    terms = balance_terms(stats, _config(balance_scope=scope), _totals(np.zeros((B, L), bool)))
    assert all(float(term) == 0 for term in terms.values())
