"""Every implementation of dispatch and combine: values, gradients, and that each is the other's
transpose.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.ops.combine import combine
from moe.ops.dispatch import dispatch
from moe.ops.dispatch_plan import make_plan
from tests.moe.ops.backends import DTYPES, over
from tests.moe.ops.routing import PATTERNS, routing
from tests.oracles import exact
from tests.small import assert_close

D = 5
# Shapes are (T, E, K). The last is one token that chooses all K = E experts.
CASES = [
  (shape, dtype, PATTERNS) for shape in ((17, 6, 3), (17, 6, 1), (1, 4, 4)) for dtype in DTYPES
]
# A gather does not see groups, so one pattern is enough where it is slow.
SLOW = [
  *(((17, 6, 3), dtype, ('random',)) for dtype in DTYPES),
  ((1, 4, 4), jnp.bfloat16, ('random',)),
]
ROWS = {'reference': CASES, 'xla': CASES, 'pallas_gpu': CASES, 'pallas_tpu': SLOW}


@functools.partial(jax.jit, static_argnames=('num_experts', 'implementation'))
def run_dispatch(tokens_TD, experts_TK, d_rows_RD, num_experts, implementation):
  plan = make_plan(experts_TK, num_experts)
  rows_RD, pull = jax.vjp(lambda x: dispatch(x, plan, implementation=implementation), tokens_TD)
  return rows_RD, pull(d_rows_RD)[0], plan


@functools.partial(jax.jit, static_argnames=('num_experts', 'implementation'))
def run_combine(rows_RD, gates_TK, experts_TK, d_tokens_TD, num_experts, implementation):
  plan = make_plan(experts_TK, num_experts)
  tokens_TD, pull = jax.vjp(
    lambda x, g: combine(x, g, plan, implementation=implementation), rows_RD, gates_TK
  )
  return tokens_TD, *pull(d_tokens_TD), plan


def _normal(*shape, dtype=jnp.float32):
  return jnp.asarray(np.random.default_rng(sum(shape)).normal(size=shape), dtype)


@over('shape, dtype, patterns', ROWS)
def test_dispatch(implementation, shape, dtype, patterns):
  tokens, num_experts, k = shape
  for pattern in patterns:
    tokens_TD, d_rows_RD = _normal(tokens, D, dtype=dtype), _normal(tokens * k, D, dtype=dtype)
    experts_TK = routing(0, tokens, num_experts, k, pattern)
    results = run_dispatch(tokens_TD, experts_TK, d_rows_RD, num_experts, implementation)
    rows_RD, d_tokens_TD, plan = jax.device_get(results)
    assert rows_RD.dtype == d_tokens_TD.dtype == dtype
    truth = np.zeros((tokens, D))
    for r, t in enumerate(np.asarray(plan.token_R)):
      assert (exact(rows_RD)[r] == exact(tokens_TD)[t]).all()
      truth[t] += exact(d_rows_RD)[r]
    # The reference's scatter-add sums K rows in bfloat16, with an error of 2⁻⁸ an addition.
    assert_close(d_tokens_TD, truth, 1e-6 if dtype == jnp.float32 else k * 2**-8)


@over('shape, dtype, patterns', ROWS)
def test_combine(implementation, shape, dtype, patterns):
  tokens, num_experts, k = shape
  for pattern in patterns:
    rows_RD, gates_TK = _normal(tokens * k, D, dtype=dtype), _normal(tokens, k)
    experts_TK, dy_TD = routing(0, tokens, num_experts, k, pattern), _normal(tokens, D)
    y_TD, d_rows_RD, d_gates_TK, plan = run_combine(
      rows_RD, gates_TK, experts_TK, dy_TD, num_experts, implementation
    )
    assert (y_TD.dtype, d_rows_RD.dtype, d_gates_TK.dtype) == (jnp.float32, dtype, jnp.float32)
    rows, gates, dy = exact(rows_RD), exact(gates_TK), exact(dy_TD)
    y, d_rows, d_gates = np.zeros((tokens, D)), np.zeros_like(rows), np.zeros_like(gates)
    for (t, choice), r in np.ndenumerate(np.asarray(plan.row_TK)):
      y[t] += gates[t, choice] * rows[r]
      d_rows[r] = gates[t, choice] * dy[t]
      d_gates[t, choice] = rows[r] @ dy[t]
    # Sums are float32 whatever the rows' dtype. Only the rows' gradient is rounded to that dtype.
    assert_close((y_TD, d_gates_TK), (y, d_gates), 1e-6)
    assert_close(d_rows_RD, d_rows, 1e-6 if dtype == jnp.float32 else 2**-8)


@pytest.mark.parametrize('implementation', ROWS, indirect=True)
def test_each_is_the_others_transpose(implementation):
  tokens, num_experts, k = 17, 6, 3
  experts_TK = routing(1, tokens, num_experts, k, 'random')
  tokens_TD, rows_RD, ones_TK = _normal(tokens, D), _normal(tokens * k, D), jnp.ones((tokens, k))
  dispatched_RD, dispatch_transposed, _ = run_dispatch(
    tokens_TD, experts_TK, rows_RD, num_experts, implementation
  )
  combined_TD, combine_transposed, *_ = run_combine(
    rows_RD, ones_TK, experts_TK, tokens_TD, num_experts, implementation
  )
  assert (combine_transposed == dispatched_RD).all()
  assert_close(dispatch_transposed, combined_TD, 1e-6)
  inner = lambda a, b: (exact(a) * exact(b)).sum()  # ⟨dispatch x, r⟩ = ⟨x, combine r⟩
  assert inner(dispatched_RD, rows_RD) == pytest.approx(inner(tokens_TD, combined_TD), rel=1e-5)
