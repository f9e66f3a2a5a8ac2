"""Cross-entropy in chunks and the balance losses against the loops over tokens."""

import functools
import math

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from moe import loss as loss_lib
from moe.loss import Totals, cross_entropy, token_losses
from moe.ops.router import RoutingStats
from tests import oracles
from tests.oracles import exact
from tests.small import assert_close, small_config

T, D, V = 13, 6, 17


def _inputs(dtype):
  generator = np.random.default_rng(0)
  hidden_TD = jnp.asarray(generator.normal(size=(T, D)), jnp.bfloat16).astype(dtype)
  head_DV = jnp.asarray(generator.normal(size=(D, V)), jnp.bfloat16).astype(jnp.float32)
  targets_T = generator.integers(0, V, T).astype(np.int32)
  weights_T = (generator.random(T) < 0.7).astype(np.float32)
  return hidden_TD, head_DV, targets_T, weights_T


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize('chunk', [1, 5, 13, 100])  # one token; not dividing T; T; more than T
def test_cross_entropy(chunk, dtype):
  hidden_TD, head_DV, targets_T, weights_T = _inputs(dtype)

  @jax.jit
  def run(hidden_TD, head_DV):
    scaled = lambda h, w: (
      3 * cross_entropy(h[None], w, targets_T[None], weights_T[None], chunk)
    )  # the cotangent is not one
    return jax.value_and_grad(scaled, argnums=(0, 1))(hidden_TD, head_DV)

  loss, (d_hidden_TD, d_head_DV) = jax.device_get(run(hidden_TD, head_DV))
  assert (loss.dtype, d_hidden_TD.dtype, d_head_DV.dtype) == (jnp.float32, dtype, jnp.float32)
  truth, d_hidden, d_head = oracles.cross_entropy(
    exact(hidden_TD), exact(head_DV), targets_T, exact(weights_T)
  )
  assert_close(loss, np.array(3 * truth), 1e-6)
  relative = 1e-5 if dtype == jnp.float32 else 2**-7
  assert_close((d_hidden_TD, d_head_DV), (3 * d_hidden, 3 * d_head), relative)
  assert (d_hidden_TD[weights_T == 0] == 0).all()
  value = jax.jit(cross_entropy, static_argnums=4)(
    hidden_TD[None], head_DV, targets_T[None], weights_T[None], chunk
  )
  assert_close(value, np.array(truth), 1e-6)


def test_token_losses():
  hidden_TD, head_DV, targets_T, _ = _inputs(jnp.float32)
  truth = [
    oracles.cross_entropy(exact(h)[None], exact(head_DV), [target], [1.0])[0]
    for h, target in zip(np.asarray(hidden_TD), targets_T)
  ]
  assert_close(
    jax.jit(token_losses, static_argnums=3)(hidden_TD[None], head_DV, targets_T[None], 5)[0],
    np.array(truth),
    1e-6,
  )


def _shapes(jaxpr):
  """Shapes of every value of a program, inner ones too."""
  for equation in jaxpr.eqns:
    yield from (
      v.aval.shape for v in (*equation.invars, *equation.outvars) if hasattr(v.aval, 'shape')
    )
    for inner in jax.extend.core.jaxprs_in_params(equation.params):
      yield from _shapes(inner)


@pytest.mark.parametrize('gradient', [True, False])
def test_logits_of_all_tokens_never_exist(gradient):
  tokens, width, vocab, chunk = 4096, 2, 100_000, 64
  loss = lambda h, w: cross_entropy(
    h[None], w, jnp.zeros((1, tokens), jnp.int32), jnp.ones((1, tokens)), chunk
  )
  function = jax.value_and_grad(loss, argnums=(0, 1)) if gradient else loss
  shapes = (
    jax.ShapeDtypeStruct((tokens, width), jnp.bfloat16),
    jax.ShapeDtypeStruct((width, vocab), jnp.float32),
  )
  sizes = [math.prod(shape) for shape in _shapes(jax.make_jaxpr(function)(*shapes).jaxpr)]
  assert max(sizes) == chunk * vocab
  # What the compiled program keeps at once: a few chunks' logits in float32, beside the head and its gradients.
  memory = jax.jit(function).lower(*shapes).compile().memory_analysis()
  assert memory.temp_size_in_bytes < 8 * 4 * (chunk * vocab + width * vocab)


# Balance losses. N layers, B sequences of L tokens.

balance_terms = jax.jit(loss_lib.balance_terms, static_argnums=1)

N, B, L, E = 2, 4, 5, 6


def _moe(**changes):
  return small_config(**{f'moe.{key}': value for key, value in changes.items()}).moe


def _routing(k, seed=0):
  """Logits of every layer and token, a mask with one row of padding, and what the paper derives from them."""
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
@pytest.mark.parametrize(('k', 'groups'), [(1, 1), (2, 3), (4, 2), (6, 6)])
def test_balance_terms(scope, k, groups):
  logits, affinities, chosen, is_token_BL = _routing(k)
  moe = _moe(
    experts_per_token=k,
    expert_balance_loss=0.01,
    device_balance_loss=0.05,
    device_groups=groups,
    balance_scope=scope,
    router_z_loss=0.001,
  )
  stats = _stats(logits, affinities, chosen, is_token_BL)
  terms = balance_terms(stats, moe, _totals(is_token_BL))
  of_layers = lambda loss: sum(
    oracles.over_scope(loss, affinities[n], chosen[n], is_token_BL, scope) for n in range(N)
  )
  expert = functools.partial(oracles.expert_balance, num_experts=E)
  device = functools.partial(oracles.device_balance, num_experts=E, groups=groups)
  assert float(terms.expert) == pytest.approx(0.01 * of_layers(expert), rel=1e-5)
  assert float(terms.device) == pytest.approx(0.05 * of_layers(device), rel=1e-5)
  z = sum(oracles.router_z(logits[n], is_token_BL) for n in range(N))
  assert float(terms.router_z) == pytest.approx(0.001 * z, rel=1e-5)


@pytest.mark.parametrize('scope', ['sequence', 'batch'])
def test_gradient_of_the_balance_terms_flows_through_the_probabilities(scope):
  """dloss/dP_i = α f_i: f counts choices and has no gradient."""
  logits, affinities, chosen, is_token_BL = _routing(2)
  moe = _moe(expert_balance_loss=0.01, balance_scope=scope)
  stats, totals = _stats(logits, affinities, chosen, is_token_BL), _totals(is_token_BL)
  term = lambda sums: balance_terms(stats._replace(probability_sums_BE=sums), moe, totals).expert
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
  """Six tokens choose experts (0, 1), (2, 3), (4, 5) twice each, all affinities 1/6; one layer."""
  moe = _moe(
    expert_balance_loss=0.01, device_balance_loss=0.05, device_groups=groups, balance_scope=scope
  )
  counts = jnp.full((1, 3, E), 2)
  stats = RoutingStats(counts, jnp.ones((1, 3, E)), jnp.zeros((1, 3)), jnp.zeros((1, 3)))
  terms = balance_terms(stats, moe, _totals(np.ones((3, 6), bool)))
  assert float(terms.expert) == pytest.approx(0.01, rel=1e-6)
  assert float(terms.device) == pytest.approx(0.05, rel=1e-6)


def test_balance_by_hand():
  """2 tokens, E = 2, K = 1, both to expert 0 with affinity 3/4: f = (2, 0), P = (3/4, 1/4), Σ f P = 3/2."""
  moe = _moe(num_experts=2, experts_per_token=1, expert_balance_loss=1.0, device_balance_loss=1.0)
  stats = RoutingStats(
    jnp.array([[[2, 0]]]), jnp.array([[[1.5, 0.5]]]), jnp.zeros((1, 1)), jnp.zeros((1, 1))
  )
  terms = balance_terms(stats, moe, _totals(np.ones((1, 2), bool)))
  assert float(terms.expert) == pytest.approx(1.5)
  assert float(terms.device) == pytest.approx(1.0)  # one group: f' = 1, P' = 1


@pytest.mark.parametrize('scope', ['sequence', 'batch'])
def test_the_parts_of_a_batch_add_up(scope):
  logits, affinities, chosen, is_token_BL = _routing(2)
  moe = _moe(
    expert_balance_loss=0.01,
    device_balance_loss=0.05,
    device_groups=2,
    balance_scope=scope,
    router_z_loss=0.1,
  )
  stats, totals = _stats(logits, affinities, chosen, is_token_BL), _totals(is_token_BL)
  whole = balance_terms(stats, moe, totals)
  counts_NE = stats.counts_BE.sum(axis=1)
  cut = lambda start, stop: jax.tree.map(lambda x: x[:, start:stop], stats)
  parts = [
    balance_terms(part, moe, totals, counts_NE) for part in (cut(0, 1), cut(1, 3), cut(3, 4))
  ]
  assert_close(jax.tree.map(lambda *x: sum(x), *parts), whole, 1e-6)


def test_a_batch_of_padding_is_no_division_by_zero():
  stats = RoutingStats(
    jnp.zeros((N, B, E), jnp.int32), jnp.zeros((N, B, E)), jnp.zeros((N, B)), jnp.zeros((N, B))
  )
  for scope in ('sequence', 'batch'):
    terms = balance_terms(stats, _moe(balance_scope=scope), _totals(np.zeros((B, L), bool)))
    assert all(float(term) == 0 for term in terms)
