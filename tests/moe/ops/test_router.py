"""Every implementation of the router: values against the paper's loop over tokens, gradients, ties,
and logits that are NaN or infinite.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from moe.ops.router import force_balance, pallas_tpu, route
from tests import oracles
from tests.moe.ops.backends import over
from tests.oracles import exact
from tests.small import assert_close


@functools.partial(jax.jit, static_argnums=2)
def choose(logits_BLE, is_token_BL, k):
  return route(logits_BLE, is_token_BL, k)


@given(
  shape=st.sampled_from([(1, 3, 1, 1), (2, 5, 4, 4), (2, 4, 7, 3), (3, 1, 12, 5)]),
  levels=st.integers(1, 4),
  seed=st.integers(0, 10_000),
)
def test_ties_go_to_the_lower_index_and_no_expert_is_chosen_twice(shape, levels, seed):
  """Logits take only `levels` values, so that most choices are ties."""
  b, length, e, k = shape
  generator = np.random.default_rng(seed)
  logits_BLE = generator.integers(0, levels, (b, length, e)).astype(np.float32)
  is_token_BL = generator.random((b, length)) < 0.7
  gates_BLK, experts_BLK, stats = choose(logits_BLE, is_token_BL, k)
  counts_BE = np.zeros((b, e), int)
  for i, t in np.ndindex(b, length):
    chosen = oracles.largest(exact(logits_BLE[i, t]), k)
    assert experts_BLK[i, t].tolist() == chosen
    assert len(set(chosen)) == k
    assert_close(gates_BLK[i, t], oracles.softmax(exact(logits_BLE[i, t]))[chosen], 1e-6)
    counts_BE[i, chosen] += is_token_BL[i, t]
  assert (stats.counts_BE == counts_BE).all()


# ((B, L, E), K, tolerance). 70 tokens take several blocks on a GPU. 21 take several steps on a TPU,
# the last overhanging.
ROWS = {
  'xla': [((2, 70, 5), 2, 1e-5)],
  'pallas_gpu': [((2, 70, 5), 2, 1e-5), ((2, 70, 3), 3, 1e-5), ((2, 70, 40), 7, 1e-5)],
  'pallas_tpu': [((3, 21, 6), k, 1e-6) for k in (1, 3, 6)],
}


@over('shape, k, tolerance', ROWS)
def test_values_and_gradients(implementation, shape, k, tolerance, monkeypatch):
  """Values and gradients equal the reference's, and values also the paper's loop; there are many
  ties.
  """
  monkeypatch.setattr(pallas_tpu, 'TOKENS', 8)
  generator = np.random.default_rng(0)
  logits_BLE = np.float32(np.round(4 * generator.normal(size=shape)) / 2)
  logits_BLE[0, :9] = 0.0
  real_BL = generator.random(shape[:2]) < 0.7

  @functools.partial(jax.jit, static_argnums=2)
  def run(logits_BLE, cotangents, implementation):
    def split(logits_BLE):
      gates_BLK, experts_BLK, stats = route(logits_BLE, real_BL, k, implementation=implementation)
      return (gates_BLK, *stats[1:4]), (experts_BLK, stats.counts_BE)

    values, pull, integers = jax.vjp(split, logits_BLE, has_aux=True)
    return values, integers, pull(cotangents)

  b, length, e = shape
  cotangents = tuple(
    jnp.asarray(generator.normal(size=s), jnp.float32) for s in ((b, length, k), (b, e), (b,), (b,))
  )
  values, integers, gradient = run(logits_BLE, cotangents, implementation)
  true_values, true_integers, true_gradient = run(logits_BLE, cotangents, 'reference')
  for computed, true in zip(integers, true_integers, strict=True):
    assert computed.dtype == true.dtype == jnp.int32
    assert computed.tolist() == true.tolist()
  assert {x.dtype for x in values} == {jnp.dtype(jnp.float32)}
  assert_close((values, gradient), (true_values, true_gradient), tolerance)
  for i, t in ((0, 0), (0, length // 2), (b - 1, length - 1)):
    affinities = oracles.softmax(exact(logits_BLE[i, t]))
    chosen = oracles.largest(affinities, k)
    assert integers[0][i, t].tolist() == chosen
    assert_close(values[0][i, t], affinities[chosen], tolerance)


@over('logits', {'pallas_tpu': [((jnp.nan, 0), (-jnp.inf, 2), (1e30, 1))]})
def test_chosen_experts_are_distinct_whatever_the_logits(implementation, logits):
  logits_BLE = np.zeros((1, 3, 4), np.float32)
  for t, (value, expert) in enumerate(logits):
    logits_BLE[0, t, expert] = value
  routing = route(jnp.asarray(logits_BLE), jnp.ones((1, 3), bool), 2, implementation=implementation)
  assert routing.experts_BLK.tolist() == [[[0, 1], [0, 1], [1, 0]]]


force = jax.jit(force_balance, static_argnums=2)


@given(
  shape=st.sampled_from([(1, 1, 5, 5), (3, 8, 6, 2), (2, 9, 4, 3), (4, 6, 1, 1)]),
  share=st.sampled_from([0.0, 0.5, 1.0]),
  seed=st.integers(0, 10_000),
)
def test_forced_balance_is_even_over_real_tokens_and_keeps_the_routers_gates(shape, share, seed):
  b, length, e, k = shape
  generator = np.random.default_rng(seed)
  logits_BLE = generator.normal(size=(b, length, e)).astype(np.float32)
  real_BL = generator.random((b, length)) < share
  routing = choose(logits_BLE, real_BL, k)
  forced = force(routing, real_BL, e)
  loads_E, counts_BE, number = np.zeros(e, int), np.zeros((b, e), int), 0
  for i, t in np.ndindex(b, length):
    chosen = forced.experts_BLK[i, t].tolist()
    assert chosen == [(number * k + choice) % e for choice in range(k)]
    assert len(set(chosen)) == k
    if real_BL[i, t]:
      loads_E[chosen] += 1
      counts_BE[i, chosen] += 1
      number += 1
  assert loads_E.max() - loads_E.min() <= 1
  assert forced.experts_BLK.dtype == forced.stats.counts_BE.dtype == jnp.int32
  assert forced.stats.counts_BE.tolist() == counts_BE.tolist()
  assert (forced.gates_BLK == routing.gates_BLK).all()
  assert all((x == y).all() for x, y in zip(forced.stats[1:4], routing.stats[1:4], strict=True))
