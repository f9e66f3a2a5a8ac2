"""Every implementation of the routed FFN against a loop over tokens: outputs and all gradients."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from moe.ops.dispatch_plan import make_plan
from moe.ops.routed_ffn import (
  ExpertWeights,
  grouped,
  pallas_gpu,
  pallas_tpu,
  reference,
  routed_ffn,
  tiled,
)
from moe.ops.tpu import visits
from tests import oracles
from tests.moe.ops.backends import DTYPES, over
from tests.moe.ops.routing import PATTERNS, routing
from tests.oracles import exact
from tests.small import assert_close

FUNCTIONS = {
  'reference': reference.routed_ffn,
  'tiled': tiled.routed_ffn,
  'grouped': grouped.routed_ffn,
  'grouped_by_pallas_tpu': functools.partial(grouped.routed_ffn, implementation='pallas_tpu'),
  'grouped_by_pallas_gpu': functools.partial(grouped.routed_ffn, implementation='pallas_gpu'),
  'pallas_tpu': pallas_tpu.routed_ffn,
  'pallas_gpu': pallas_gpu.routed_ffn,
}
# The functions that are fast on CPU run every case.
FAST = ('reference', 'grouped', 'tiled', 'pallas_gpu')
D, F = 8, 12
# Every product rounds its operands, activations and result by 2⁻⁹ of themselves. Errors partly
# cancel in sums.
TOLERANCE = {jnp.float32: 2e-6, jnp.bfloat16: 2e-2}


@functools.partial(jax.jit, static_argnames=('implementation', 'dtype'))
def run(tokens_TD, gates_TK, experts_TK, weights, dy_TD, implementation, dtype):
  """The output, and the gradients of tokens, gates and weights."""
  plan = make_plan(experts_TK, weights.gate_EDF.shape[0])
  ffn = lambda x, g, w: FUNCTIONS[implementation](x, g, plan, w, dtype)
  y_TD, pull = jax.vjp(ffn, tokens_TD, gates_TK, weights)
  return y_TD, *pull(dy_TD)


@functools.cache
def _case(assignments, num_experts):
  """(inputs, truth). bfloat16 holds the inputs exactly, so both dtypes have the same truth."""
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

  truth = _truth(tokens_TD, np.float32(gates_TK), experts_TK, weights, dy_TD)
  return (tokens_TD, np.float32(gates_TK), experts_TK, weights, dy_TD), truth


def _truth(tokens_TD, gates_TK, experts_TK, weights, dy_TD):
  """The results of `run`, in float64."""
  x, gates, dy = exact(tokens_TD), exact(gates_TK), exact(dy_TD)
  experts = [oracles.Expert(*matrices) for matrices in zip(*map(exact, weights), strict=True)]
  y = oracles.routed_ffn(x, gates, experts_TK, experts)
  dx, d_gates, d_experts = oracles.routed_ffn_gradients(x, gates, experts_TK, experts, dy)
  return y, dx, d_gates, ExpertWeights(*(np.stack(w) for w in zip(*d_experts)))


def check(experts_TK, num_experts, implementation, dtype):
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


CASES = [
  *(((40, 7, 3), dtype, PATTERNS) for dtype in DTYPES),
  ((1, 4, 4), jnp.float32, PATTERNS),
]
# Cases for TPU: blocks shared by groups; a few rows in one block; two experts a token.
IN_BLOCKS = [
  ((13, 7, 3), jnp.bfloat16, ('random',)),
  ((1, 4, 4), jnp.float32, ('random',)),
  ((8, 4, 2), jnp.float32, ('first',)),
  ((9, 6, 2), jnp.float32, ('few',)),
]


@over(
  'shape, dtype, patterns',
  dict.fromkeys((*FAST, 'grouped_by_pallas_gpu'), CASES)
  | {'pallas_tpu': IN_BLOCKS, 'grouped_by_pallas_tpu': IN_BLOCKS[:1]},
)
def test_against_a_loop_over_tokens(implementation, shape, dtype, patterns):
  tokens, num_experts, k = shape
  for pattern in patterns:
    check(routing(0, tokens, num_experts, k, pattern), num_experts, implementation, dtype)


# Group sizes. The rungs of tiled.py are 32, 64, 96, 128, 192 and 256 rows, as far as the tokens can
# fill them. Sizes of the same sum and number compile once. An expert with 1029 rows or more has
# tiles in both steps of a turn.
BOUNDARIES = [
  (31, 32, 33, 330, 64, 65, 127, 128, 129, 0, 0, 121),
  (255, 0, 256, 0, 0, 0, 549, 0, 0, 0, 0, 0),
  (0, 0, 257, 63, 0, 95, 96, 97, 0, 452, 0, 0),
  (930, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 130),
  (0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1060),
  (1, 0, 0, 1, 0, 0, 1057, 0, 0, 0, 0, 1),
  (1029, 0, 31, 0, 0, 0, 0, 0, 0, 0, 0, 0),
]
# Enough tokens for one rung, and for two.
FEW_RUNGS = [(0, 32), (33, 0)]
# With 128 rows an expert on average, the rungs are multiples of 64.
MANY_ROWS = [
  (64, 65, 128, 129, 192, 193),
  (63, 127, 191, 390, 0, 0),
  (255, 256, 257, 0, 3, 0),
  (1, 0, 0, 0, 0, 770),
]
# 32 rows fill two blocks of 16. In turn: an empty group is the first to visit a block that the next
# group still needs fetched; one group has all rows, after five empty ones; empty groups begin after
# the last row; empty groups lie between others.
AT_BLOCKS = [
  (0, 16, 0, 0, 16, 0),
  (0, 0, 0, 0, 0, 32),
  (16, 16, 0, 0, 0, 0),
  (0, 9, 0, 0, 23, 0),
]


@over(
  'dtype, boundaries',
  {name: [(dtype, BOUNDARIES) for dtype in DTYPES] for name in FAST}
  | {'tiled': [(dtype, BOUNDARIES + FEW_RUNGS + MANY_ROWS) for dtype in DTYPES]}
  | {'pallas_tpu': [(jnp.float32, AT_BLOCKS)]}
  # One case is enough: its three ops have suites of their own, with empty groups everywhere.
  | {'grouped_by_pallas_tpu': [(jnp.float32, AT_BLOCKS[1:2])]},
)
def test_group_sizes_around_every_block_boundary(implementation, dtype, boundaries):
  for sizes in boundaries:
    experts_R = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    np.random.default_rng(0).shuffle(experts_R)
    check(experts_R[:, None], len(sizes), implementation, dtype)


@over('dtype, x_dtype', {name: itertools.product(DTYPES, DTYPES) for name in FUNCTIONS})
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


def _drawn(tokens, num_experts, k, d, f, scale):
  """(x_TD, gates_TK, weights, dy_TD), which bfloat16 holds exactly, and experts_TK."""
  generator = np.random.default_rng(0)
  rounded = lambda *shape: jnp.asarray(generator.normal(size=shape), jnp.bfloat16).astype(
    jnp.float32
  )
  shapes = (num_experts, d, f), (num_experts, d, f), (num_experts, f, d)
  weights = ExpertWeights(*(rounded(*shape) / scale for shape in shapes))
  experts_TK = routing(0, tokens, num_experts, k, 'random')
  return (rounded(tokens, d), rounded(tokens, k), weights, rounded(tokens, d)), experts_TK


@over('dtype', {'pallas_gpu': DTYPES})
def test_several_tiles_each_way(implementation, dtype):
  """D = 150 and F = 140 are three tiles in float32, and not a multiple of a loop's step in either
  dtype.
  """
  (x_TD, gates_TK, weights, dy_TD), experts_TK = _drawn(150, 3, 2, 150, 140, 16)
  true = _truth(x_TD, gates_TK, experts_TK, weights, dy_TD)
  computed = run(
    x_TD.astype(dtype), gates_TK, experts_TK, weights, dy_TD.astype(dtype), implementation, dtype
  )
  for name, a, b in zip(
    ('output', 'd tokens', 'd gates', 'd weights'), computed, true, strict=True
  ):
    assert_close(a, b, 1e-5 if dtype == jnp.float32 else 2e-2, name)


@over(
  'block_bytes, tiles',
  {'pallas_tpu': [(500_000, (2, 128, 1, 150)), (1, (1, 256, 2, 128))]},
)
def test_columns_in_tiles(implementation, block_bytes, tiles, monkeypatch):
  """Covers two tiles of D or of F, an F that overhangs and a padded D: every kernel's columns are
  cut somewhere.

  The gradients of gate and up are cut along D if half of D fits with the whole of F, else along F.
  """
  monkeypatch.setattr(visits, 'BLOCK_BYTES', block_bytes)
  assert pallas_tpu._gradient_tiles(256, 150, 16, jnp.dtype(jnp.float32)) == tiles
  (x_TD, gates_TK, weights, dy_TD), experts_TK = _drawn(13, 3, 2, 200, 150, 10)
  arguments = x_TD, gates_TK, experts_TK, weights, dy_TD
  # Jitted anew: block sizes are not in the cache key of `run`. The reference has no blocks.
  anew = jax.jit(lambda *a: run.__wrapped__(*a, implementation, jnp.float32))
  results = anew(*arguments), run(*arguments, 'reference', jnp.float32)
  assert_close(*results, 2e-6)


@functools.partial(jax.jit, static_argnames='num_experts')
def run_on_cpu(x_TD, gates_TK, experts_TK, weights, num_experts):
  """Like `run`, with this platform's plain XLA and a cotangent of ones."""
  plan = make_plan(experts_TK, num_experts)
  ffn = lambda x, g, w: routed_ffn(x, g, plan, w, dtype=jnp.float32, implementation='xla')
  y_TD, pull = jax.vjp(ffn, x_TD, gates_TK, weights)
  return y_TD, *pull(jnp.ones_like(y_TD))


@settings(max_examples=15)
@given(
  # (T, E, K, D, F): each shape compiles, so there are few of them, with many routings each.
  shape=st.sampled_from(
    [(0, 3, 2, 3, 5), (1, 1, 1, 1, 1), (2, 6, 3, 8, 4), (33, 6, 6, 3, 5), (300, 5, 2, 8, 4)]
  ),
  favourite=st.floats(0, 8),
  seed=st.integers(0, 10_000),
)
def test_the_routed_ffn_is_the_gated_sum_of_its_experts(shape, favourite, seed):
  """`favourite` tilts the routing towards the first experts. The cotangent is ones."""
  tokens, num_experts, k, d, f = shape
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
  results = run_on_cpu(x_TD, gates_TK, experts_TK, weights, num_experts)
  if tokens == 0:
    assert all((np.asarray(w) == 0).all() for w in results[3])
    return
  truth = _truth(x_TD, gates_TK, experts_TK, weights, np.ones_like(x_TD))
  for name, computed, true in zip(
    ('y', 'd x', 'd gates', 'd weights'), results, truth, strict=True
  ):
    assert_close(computed, true, 1e-5, name)
