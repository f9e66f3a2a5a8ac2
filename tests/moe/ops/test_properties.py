"""Properties over shapes and routings that nobody picked: routing with ties, and the routed FFN of this platform."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from moe.ops.dispatch_plan import make_plan
from moe.ops.routed_ffn import ExpertWeights, routed_ffn
from moe.ops.router import route
from tests import oracles
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
  """Logits take `levels` values only, so that most choices are ties."""
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


@settings(max_examples=12)  # each shape compiles anew
@given(
  tokens=st.sampled_from([0, 1, 2, 33, 300]),
  num_experts=st.integers(1, 6),
  k=st.integers(1, 6),
  widths=st.sampled_from([(1, 1), (3, 5), (8, 4)]),
  favourite=st.floats(0, 8),
  seed=st.integers(0, 10_000),
)
def test_the_routed_ffn_is_the_gated_sum_of_its_experts(
  tokens, num_experts, k, widths, favourite, seed
):
  """Any sizes; `favourite` tilts the routing towards the first experts. Weights' gradients through d · y, d of ones."""
  k, (d, f) = min(k, num_experts), widths
  generator = np.random.default_rng(seed)
  scores_TE = generator.normal(size=(tokens, num_experts)) - favourite * np.arange(num_experts)
  experts_TK = np.argsort(-scores_TE, axis=1)[:, :k].astype(np.int32)
  x_TD, gates_TK = (generator.normal(size=(tokens, n)).astype(np.float32) for n in (d, k))
  weights = ExpertWeights(
    *(
      generator.normal(size=(num_experts, *shape)).astype(np.float32)
      for shape in ((d, f), (d, f), (f, d))
    )
  )

  @jax.jit
  def run(x_TD, gates_TK, weights):
    plan = make_plan(jnp.asarray(experts_TK), num_experts)
    ffn = lambda x, g, w: routed_ffn(x, g, plan, w, dtype=jnp.float32, implementation='xla')
    y_TD, pull = jax.vjp(ffn, x_TD, gates_TK, weights)
    return y_TD, *pull(jnp.ones_like(y_TD))

  experts = [oracles.Expert(*(exact(w[e]) for w in weights)) for e in range(num_experts)]
  x, gates = exact(x_TD), exact(gates_TK)
  y = oracles.routed_ffn(x, gates, experts_TK, experts)
  dx, d_gates, d_experts = oracles.routed_ffn_gradients(
    x, gates, experts_TK, experts, np.ones_like(y)
  )
  truth = y, dx, d_gates, ExpertWeights(*(np.stack(w) for w in zip(*d_experts)))
  if tokens == 0:
    assert all((np.asarray(w) == 0).all() for w in run(x_TD, gates_TK, weights)[3])
    return
  results = run(x_TD, gates_TK, weights)
  for name, computed, true in zip(
    ('y', 'd x', 'd gates', 'd weights'), results, truth, strict=True
  ):
    assert_close(computed, true, 1e-5, name)
