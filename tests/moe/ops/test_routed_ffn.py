"""The routed FFN, every implementation, against a loop over tokens: outputs and all gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.ops.dispatch_plan import make_plan
from moe.ops.routed_ffn import ExpertWeights
from tests import oracles
from tests.moe.ops.modules import module
from tests.moe.ops.routing import PATTERNS, routing
from tests.oracles import exact
from tests.small import assert_close

IMPLEMENTATIONS = ('reference', 'grouped', 'tiled')
D, F = 8, 12
# Every product rounds its operands, activations and result to 2⁻⁹ of themselves, errors partly cancel in sums.
TOLERANCE = {jnp.float32: 2e-6, jnp.bfloat16: 2e-2}


@functools.partial(jax.jit, static_argnames=('implementation', 'dtype'))
def run(tokens_TD, gates_TK, experts_TK, weights, dy_TD, implementation, dtype):
  """Output, gradients of tokens, gates and weights."""
  plan = make_plan(experts_TK, weights.gate_EDF.shape[0])
  ffn = lambda x, g, w: module('routed_ffn', implementation).routed_ffn(x, g, plan, w, dtype)
  y_TD, pull = jax.vjp(ffn, tokens_TD, gates_TK, weights)
  return y_TD, *pull(dy_TD)


@functools.cache
def _case(assignments, num_experts):
  """Inputs, which bfloat16 holds exactly so that both types have one truth, and that truth."""
  experts_TK = np.array(assignments, np.int32)
  tokens, k = experts_TK.shape
  generator = np.random.default_rng(0)
  rounded = lambda *shape: np.asarray(
    jnp.asarray(generator.normal(size=shape), jnp.bfloat16), np.float32
  )
  weights = ExpertWeights(*(rounded(num_experts, *shape) / 2 for shape in ((D, F), (D, F), (F, D))))
  tokens_TD, dy_TD, gates_TK = (
    rounded(tokens, D),
    rounded(tokens, D),
    generator.uniform(0.1, 1, (tokens, k)),
  )

  experts = [oracles.Expert(*(exact(w[e]) for w in weights)) for e in range(num_experts)]
  x, dy, gates = exact(tokens_TD), exact(dy_TD), exact(np.float32(gates_TK))
  y = oracles.routed_ffn(x, gates, experts_TK, experts)
  dx, d_gates, d_experts = oracles.routed_ffn_gradients(x, gates, experts_TK, experts, dy)
  truth = y, dx, d_gates, ExpertWeights(*(np.stack(w) for w in zip(*d_experts)))
  return (tokens_TD, np.float32(gates_TK), experts_TK, weights, dy_TD), truth


def _check(experts_TK, num_experts, implementation, dtype):
  (tokens_TD, gates_TK, experts_TK, weights, dy_TD), truth = _case(
    tuple(map(tuple, experts_TK.tolist())), num_experts
  )
  results = run(
    jnp.asarray(tokens_TD, dtype),
    gates_TK,
    experts_TK,
    weights,
    jnp.asarray(dy_TD, dtype),
    implementation,
    dtype,
  )
  for name, computed, true in zip(
    ('output', 'd tokens', 'd gates', 'd weights'), results, truth, strict=True
  ):
    assert_close(computed, true, TOLERANCE[dtype], name)
  unused = sorted(set(range(num_experts)) - set(experts_TK.flat))
  assert all((w[np.array(unused, int)] == 0).all() for w in results[3])  # exactly


@pytest.mark.parametrize('implementation', IMPLEMENTATIONS)
@pytest.mark.parametrize(
  ('shape', 'dtype'),
  [((1, 4, 4), jnp.float32), ((40, 7, 3), jnp.float32), ((40, 7, 3), jnp.bfloat16)],
)
def test_against_a_loop_over_tokens(shape, dtype, implementation):
  tokens, num_experts, k = shape
  for pattern in PATTERNS:
    _check(routing(0, tokens, num_experts, k, pattern), num_experts, implementation, dtype)


# The rungs of tiled.py are the multiples of 32 up to 256 rows, those that so many tokens can fill; sizes of the same
# shape compile once. In the row of 1431 tokens one expert has tiles in both steps of a turn.
BOUNDARIES = [
  (31, 32, 33, 0, 64, 65, 127, 128, 129, 0, 0, 121),
  (255, 0, 256, 0, 0, 0, 219, 0, 0, 0, 0, 0),
  (0, 0, 257, 63, 0, 95, 96, 97, 0, 122, 0, 0),
  (600, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 130),
  (0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 730),
  (1, 0, 0, 1, 0, 0, 727, 0, 0, 0, 0, 1),
  (1400, 0, 31),
  (0, 32),
  (33, 0),
]


@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize('implementation', IMPLEMENTATIONS)
def test_group_sizes_around_every_block_boundary(implementation, dtype):
  for sizes in BOUNDARIES:
    experts_R = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    np.random.default_rng(0).shuffle(experts_R)
    _check(experts_R[:, None], len(sizes), implementation, dtype)


@pytest.mark.parametrize('x_dtype', TOLERANCE)
@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize('implementation', IMPLEMENTATIONS)
def test_types(implementation, dtype, x_dtype):
  (tokens_TD, gates_TK, experts_TK, weights, dy_TD), _ = _case(((0, 2), (1, 2)), 3)
  y_TD, dx_TD, d_gates_TK, d_weights = jax.eval_shape(
    functools.partial(run, implementation=implementation, dtype=dtype),
    jnp.asarray(tokens_TD, x_dtype),
    gates_TK,
    experts_TK,
    weights,
    jnp.asarray(dy_TD, dtype),
  )
  assert (y_TD.dtype, dx_TD.dtype) == (dtype, x_dtype)
  assert {d_gates_TK.dtype, *(w.dtype for w in d_weights)} == {jnp.dtype(jnp.float32)}
