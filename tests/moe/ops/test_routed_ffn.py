"""The routed FFN, every implementation, against a loop over tokens: outputs and all gradients."""

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
# Those that are fast on CPU: they run every case.
FAST = ('reference', 'grouped', 'tiled', 'pallas_gpu')
D, F = 8, 12
# Every product rounds its operands, activations and result to 2⁻⁹ of themselves,
# errors partly cancel in sums.
TOLERANCE = {jnp.float32: 2e-6, jnp.bfloat16: 2e-2}


@functools.partial(jax.jit, static_argnames=('implementation', 'dtype'))
def run(tokens_TD, gates_TK, experts_TK, weights, dy_TD, implementation, dtype):
  """Output, gradients of tokens, gates and weights."""
  plan = make_plan(experts_TK, weights.gate_EDF.shape[0])
  ffn = lambda x, g, w: FUNCTIONS[implementation](x, g, plan, w, dtype)
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
  ((1, 4, 4), jnp.float32, PATTERNS),
  *(((40, 7, 3), dtype, PATTERNS) for dtype in DTYPES),
]
# On TPU: a few rows in one block; blocks shared by groups; one group that has all rows, which fill
# its block, behind three empty ones; empty groups that begin behind the last row;
# empty groups between.
IN_BLOCKS = [
  ((1, 4, 4), jnp.float32, ('random',)),
  ((13, 7, 3), jnp.bfloat16, ('random',)),
  ((16, 4, 1), jnp.float32, ('hot',)),
  ((8, 4, 2), jnp.float32, ('first',)),
  ((9, 6, 2), jnp.float32, ('few',)),
]


@over(
  'shape, dtype, patterns',
  dict.fromkeys((*FAST, 'grouped_by_pallas_gpu'), CASES)
  | {'pallas_tpu': IN_BLOCKS, 'grouped_by_pallas_tpu': IN_BLOCKS[1:3]},
)
def test_against_a_loop_over_tokens(implementation, shape, dtype, patterns):
  tokens, num_experts, k = shape
  for pattern in patterns:
    check(routing(0, tokens, num_experts, k, pattern), num_experts, implementation, dtype)


# The rungs of tiled.py are the multiples of 32 up to 256 rows, those that so many tokens
# can fill; sizes of the same shape compile once. In the row of 1431 tokens one expert has
# tiles in both steps of a turn.
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
# Blocks of 16 rows: an empty group's visit is the first to its block,
# which the next group still needs fetched.
AT_BLOCKS = [(0, 16, 0, 0, 20, 0)]


@over(
  'dtype, boundaries',
  {name: [(dtype, BOUNDARIES) for dtype in DTYPES] for name in FAST}
  | {'pallas_tpu': [(jnp.float32, AT_BLOCKS)]},
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
  """x_TD, gates_TK, weights, dy_TD that bfloat16 holds exactly, and experts_TK."""
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
  """D = 150 and F = 140 are three tiles in float32, and no multiple of a
  loop's step in either type.
  """
  (x_TD, gates_TK, weights, dy_TD), experts_TK = _drawn(150, 3, 2, 150, 140, 16)

  def truth(x_TD, gates_TK, weights):
    gates_TE = jnp.zeros((150, 3)).at[np.arange(150)[:, None], experts_TK].set(gates_TK)
    product = functools.partial(jnp.einsum, precision='highest')
    hidden = jax.nn.silu(product('td,edf->etf', x_TD, weights.gate_EDF)) * product(
      'td,edf->etf', x_TD, weights.up_EDF
    )
    return product('te,etf,efd->td', gates_TE, hidden, weights.down_EFD)

  with jax.enable_x64(True):
    as_double = lambda tree: jax.tree.map(exact, tree)
    y_TD, pull = jax.vjp(truth, *as_double((x_TD, gates_TK, weights)))
    true = jax.device_get((y_TD, *pull(exact(dy_TD))))
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
  """Two tiles of D or of F, an F that overhangs, D padded;
  every kernel's columns are cut somewhere.

  Of the gradients of gate and up: D, as long as half of it has room with the whole of F, else F.
  """
  monkeypatch.setattr(visits, 'BLOCK_BYTES', block_bytes)
  assert pallas_tpu._gradient_tiles(256, 150, 16, jnp.dtype(jnp.float32)) == tiles
  (x_TD, gates_TK, weights, dy_TD), experts_TK = _drawn(13, 3, 2, 200, 150, 10)
  results = []
  for chosen in (implementation, 'reference'):
    # Not `run`: its cache does not know the size of blocks.
    anew = jax.jit(lambda *a, i=chosen: run.__wrapped__(*a, i, jnp.float32))
    results.append(anew(x_TD, gates_TK, experts_TK, weights, dy_TD))
  assert_close(*results, 2e-6)


@functools.partial(jax.jit, static_argnames='num_experts')
def run_on_cpu(x_TD, gates_TK, experts_TK, weights, num_experts):
  """As `run` with the plain XLA of this platform and a cotangent of ones."""
  plan = make_plan(experts_TK, num_experts)
  ffn = lambda x, g, w: routed_ffn(x, g, plan, w, dtype=jnp.float32, implementation='xla')
  y_TD, pull = jax.vjp(ffn, x_TD, gates_TK, weights)
  return y_TD, *pull(jnp.ones_like(y_TD))


@settings(max_examples=15)
@given(
  # T, E, K, D, F: a compilation each, so few, and many routings of each.
  shape=st.sampled_from(
    [(0, 3, 2, 3, 5), (1, 1, 1, 1, 1), (2, 6, 3, 8, 4), (33, 6, 6, 3, 5), (300, 5, 2, 8, 4)]
  ),
  favourite=st.floats(0, 8),
  seed=st.integers(0, 10_000),
)
def test_the_routed_ffn_is_the_gated_sum_of_its_experts(shape, favourite, seed):
  """`favourite` tilts the routing towards the first experts.
  Weights' gradients through d · y, d of ones.
  """
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
  experts = [oracles.Expert(*(exact(w[e]) for w in weights)) for e in range(num_experts)]
  x, gates = exact(x_TD), exact(gates_TK)
  y = oracles.routed_ffn(x, gates, experts_TK, experts)
  dx, d_gates, d_experts = oracles.routed_ffn_gradients(
    x, gates, experts_TK, experts, np.ones_like(y)
  )
  truth = y, dx, d_gates, ExpertWeights(*(np.stack(w) for w in zip(*d_experts)))
  for name, computed, true in zip(
    ('y', 'd x', 'd gates', 'd weights'), results, truth, strict=True
  ):
    assert_close(computed, true, 1e-5, name)
