"""The Mosaic kernels in Pallas' TPU interpreter, which runs DMAs and semaphores on CPU and looks for races.

A DMA takes milliseconds there, so shapes are tiny, and blocks of rows shrunk to 16 for several to arise.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from moe.ops import attention as attention_op
from moe.ops import combine as combine_op
from moe.ops import dispatch as dispatch_op
from moe.ops import grouped_matmul as grouped_matmul_op
from moe.ops import router as router_op
from moe.ops.dispatch_plan import make_plan
from moe.ops.implementation import compiling_for
from moe.ops.routed_ffn import ExpertWeights
from moe.ops.routed_ffn import pallas_tpu as routed_kernels
from moe.ops.routed_ffn import routed_ffn as routed_ffn_op
from moe.ops.router import pallas_tpu as router_kernel
from moe.ops.tpu import row_moves, visits
from moe.planner.kernels.tpu_costs import traced_kernels
from tests.moe.ops import test_dispatch_combine as pair_tests
from tests.moe.ops import test_grouped_matmul as grouped_tests
from tests.moe.ops import test_routed_ffn as routed_tests
from tests.moe.ops.routing import routing
from tests.small import assert_close

DTYPES = (jnp.float32, jnp.bfloat16)
INTERPRET = pltpu.InterpretParams(detect_races=True)


@pytest.fixture(autouse=True)
def interpreted(monkeypatch, capfd):
  """Everything is traced for TPU and interpreted; the interpreter prints the races that it sees."""
  for module, name in ((visits, 'LEAST_ROWS'), (visits, 'MOST_ROWS'), (row_moves, 'LEAST_ROWS')):
    monkeypatch.setattr(module, name, 16)
  jax.clear_caches()  # block sizes are no part of jit's cache key
  with compiling_for('tpu', interpret=INTERPRET):
    yield
  assert 'RACE' not in capfd.readouterr().out


def _normal(seed, *shape, dtype=jnp.float32):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def test_a_race_would_be_seen(capfd):
  def kernel(x_ref, out_ref, buffer_ref, semaphore):
    copy = pltpu.make_async_copy(x_ref, buffer_ref, semaphore)
    copy.start()
    out_ref[...] = buffer_ref[...]  # before the copy has ended
    copy.wait()

  x = jnp.ones((8, 128))
  call = pl.pallas_call(
    kernel,
    in_specs=[pl.BlockSpec(memory_space=pl.ANY)],
    out_shape=x,
    scratch_shapes=[pltpu.VMEM(x.shape, x.dtype), pltpu.SemaphoreType.DMA],
    interpret=INTERPRET,
  )
  try:
    jax.block_until_ready(call(x))
    seen = capfd.readouterr().out
  except jax.errors.JaxRuntimeError as error:  # newer interpreters raise where others print
    seen = str(error)
    capfd.readouterr()
  assert 'race' in seen.lower()


# The ops' own tests, run over these kernels. T = 17 or one token, all K = E experts.
@pytest.mark.parametrize(
  ('shape', 'dtype'), [((1, 4, 4), jnp.bfloat16), *(((17, 6, 3), t) for t in DTYPES)]
)
def test_dispatch(shape, dtype, monkeypatch):
  monkeypatch.setattr(pair_tests, 'PATTERNS', ('random',))  # a gather does not see groups
  pair_tests.test_dispatch(shape, 'pallas_tpu', dtype)


@pytest.mark.parametrize(
  ('shape', 'dtype'), [((1, 4, 4), jnp.bfloat16), *(((17, 6, 3), t) for t in DTYPES)]
)
def test_combine(shape, dtype, monkeypatch):
  monkeypatch.setattr(pair_tests, 'PATTERNS', ('random',))
  pair_tests.test_combine(shape, 'pallas_tpu', dtype)


def test_each_is_the_others_transpose():
  pair_tests.test_each_is_the_others_transpose('pallas_tpu')


@pytest.mark.parametrize('dtype', DTYPES)
def test_grouped_matmul_with_empty_groups_and_shared_blocks(dtype):
  grouped_tests.test_against_a_loop_over_rows('pallas_tpu', dtype)


@pytest.mark.parametrize('dtype', DTYPES)
def test_grouped_matmul_in_column_tiles(dtype, monkeypatch):
  """Tiles of 128 of 200 columns each way, the second overhanging; the last block of rows overhangs too."""
  monkeypatch.setattr(visits, 'BLOCK_BYTES', 1)
  sizes_E, x_RD, w_EDF = (
    np.array([3, 0, 30, 8], np.int32),
    _normal(0, 41, 136, dtype=dtype),
    _normal(1, 4, 136, 200),
  )
  dy_RF, results = _normal(2, 41, 200, dtype=dtype).astype(jnp.float32), {}
  for implementation in ('reference', 'pallas_tpu'):
    product = lambda x, w, i=implementation: grouped_matmul_op.grouped_matmul(
      x, w, sizes_E, implementation=i
    )
    y_RF, pull = jax.vjp(product, x_RD, w_EDF.astype(dtype))
    results[implementation] = y_RF, *pull(dy_RF)
  assert_close(results['pallas_tpu'], results['reference'], 2e-6 if dtype == jnp.float32 else 2**-7)


# (shape, pattern, dtype): a few rows in one block; blocks shared by groups; empty groups first, last and between.
ROUTED = [
  ((1, 4, 4), 'random', jnp.float32),
  ((13, 7, 3), 'random', jnp.bfloat16),
  (
    (16, 4, 1),
    'hot',
    jnp.float32,
  ),  # one group has all rows, which fill its block; three are empty before it
  ((8, 4, 2), 'first', jnp.float32),  # empty groups begin behind the last row
  ((9, 6, 2), 'few', jnp.float32),
]


@pytest.mark.parametrize(('shape', 'pattern', 'dtype'), ROUTED)
def test_routed_ffn(shape, pattern, dtype):
  tokens, num_experts, k = shape
  routed_tests._check(routing(0, tokens, num_experts, k, pattern), num_experts, 'pallas_tpu', dtype)


def test_routed_ffn_with_empty_groups_at_block_boundaries():
  """An empty group's visit is then the first to its block, which the next group still needs fetched."""
  experts_R = np.repeat(np.arange(6, dtype=np.int32), (0, 16, 0, 0, 20, 0))
  np.random.default_rng(0).shuffle(experts_R)
  routed_tests._check(experts_R[:, None], 6, 'pallas_tpu', jnp.float32)


@pytest.mark.parametrize(
  ('block_bytes', 'tiles'), [(500_000, (2, 128, 1, 150)), (1, (1, 256, 2, 128))]
)
def test_routed_ffn_in_tiles(block_bytes, tiles, monkeypatch):
  """Two tiles of D or of F, an F that overhangs, D padded; every kernel's columns are cut somewhere.

  Of the gradients of gate and up: D, as long as half of it has room with the whole of F, else F.
  """
  monkeypatch.setattr(visits, 'BLOCK_BYTES', block_bytes)
  assert routed_kernels._gradient_tiles(256, 150, 16, jnp.dtype(jnp.float32)) == tiles
  tokens, num_experts, k, d, f = 13, 3, 2, 200, 150
  x_TD, dy_TD, gates_TK = (
    _normal(0, tokens, d),
    _normal(1, tokens, d),
    jnp.abs(_normal(2, tokens, k)),
  )
  shapes = ((num_experts, d, f), (num_experts, d, f), (num_experts, f, d))
  weights = ExpertWeights(*(_normal(i, *shape) / 10 for i, shape in enumerate(shapes)))
  plan, results = make_plan(routing(0, tokens, num_experts, k, 'random'), num_experts), {}
  for implementation in ('reference', 'pallas_tpu'):
    ffn = lambda x, g, w, i=implementation: routed_ffn_op(
      x, g, plan, w, dtype=jnp.float32, implementation=i
    )
    y_TD, pull = jax.vjp(ffn, x_TD, gates_TK, weights)
    results[implementation] = y_TD, *pull(dy_TD)
  assert_close(results['pallas_tpu'], results['reference'], 2e-6)


@pytest.mark.parametrize('k', [1, 3, 6])
def test_router(k, monkeypatch):
  """Values and gradients as XLA's, with ties, over several steps a sequence, the last of which overhangs."""
  monkeypatch.setattr(router_kernel, 'TOKENS', 8)
  logits_BLE = jnp.round(_normal(0, 3, 21, 6) * 2) / 2  # many ties
  real_BL = np.random.default_rng(1).random((3, 21)) < 0.7
  results = {}
  for implementation in ('reference', 'pallas_tpu'):

    def floats(logits, i=implementation):
      gates_BLK, experts_BLK, stats = router_op.route(logits, real_BL, k, implementation=i)
      return (gates_BLK, *stats[1:]), (experts_BLK, stats.counts_BE)

    values, pull, integers = jax.vjp(floats, logits_BLE, has_aux=True)
    cotangents = tuple(_normal(n, *x.shape) for n, x in enumerate(values))
    results[implementation] = values, pull(cotangents), integers
  (values, gradient, integers), truth = results['pallas_tpu'], results['reference']
  assert all((a == b).all() and a.dtype == b.dtype for a, b in zip(integers, truth[2], strict=True))
  assert_close(values, truth[0], 1e-6)
  assert_close(gradient, truth[1], 1e-6)


def test_router_chooses_distinct_experts_whatever_the_logits():
  logits_BLE = (
    jnp.zeros((1, 3, 4)).at[0, 0].set(jnp.nan).at[0, 1, 2].set(-jnp.inf).at[0, 2, 1].set(1e30)
  )
  experts_BLK = router_op.route(logits_BLE, jnp.ones((1, 3), bool), 2).experts_BLK
  assert experts_BLK.tolist() == [[[0, 1], [0, 1], [1, 0]]]


def test_attention():
  """Splash attention through its padding: L and C no multiples of 128, two heads on one key/value head, documents."""
  q_BLHC, k_BLGC, v_BLGC = _normal(0, 2, 9, 4, 24), _normal(1, 2, 9, 2, 24), _normal(2, 2, 9, 2, 24)
  segments_BL, dy_BLHC = jnp.array([[1] * 4 + [2] * 5, [1] * 7 + [0] * 2]), _normal(3, 2, 9, 4, 24)
  results = {}
  for implementation in ('reference', 'pallas_tpu'):
    attend = lambda *x, i=implementation: attention_op.attention(*x, segments_BL, implementation=i)
    y_BLHC, pull = jax.vjp(attend, q_BLHC, k_BLGC, v_BLGC)
    results[implementation] = y_BLHC, pull(dy_BLHC)
  assert_close(results['pallas_tpu'], results['reference'], 1e-5)


@pytest.mark.parametrize('dtype', DTYPES)
def test_no_tokens(dtype):
  plan = make_plan(jnp.zeros((0, 2), jnp.int32), 3)
  x_TD, gates_TK, w_EDF = jnp.zeros((0, 4), dtype), jnp.zeros((0, 2)), jnp.ones((3, 4, 5), dtype)
  weights = ExpertWeights(w_EDF, w_EDF, w_EDF.swapaxes(1, 2))
  calls = {
    'dispatch': (lambda x: dispatch_op.dispatch(x, plan), x_TD),
    'combine': (lambda x, g: combine_op.combine(x, g, plan), x_TD, gates_TK),
    'grouped_matmul': (
      lambda x, w: grouped_matmul_op.grouped_matmul(x, w, plan.group_sizes_E),
      x_TD,
      w_EDF,
    ),
    'routed_ffn': (
      lambda x, g, w: routed_ffn_op(x, g, plan, w, dtype=dtype),
      x_TD,
      gates_TK,
      weights,
    ),
  }
  for function, *arguments in calls.values():
    y, pull = jax.vjp(function, *arguments)
    assert y.shape[0] == 0
    for gradient, argument in zip(
      jax.tree.leaves(pull(y)), jax.tree.leaves(arguments), strict=True
    ):
      assert (gradient.shape, gradient.dtype) == (argument.shape, argument.dtype)
      assert (gradient == 0).all()
  routing_of_none = router_op.route(jnp.zeros((2, 0, 3)), jnp.zeros((2, 0), bool), 2)
  assert routing_of_none.stats.counts_BE.tolist() == [[0] * 3] * 2


def test_the_kernels_are_what_runs():
  """auto on TPU calls these kernels, forward and backward, and computes no product outside of them."""
  plan, weights = (
    make_plan(routing(0, 8, 4, 2, 'random'), 4),
    ExpertWeights(*[jnp.ones((4, 8, 8))] * 3),
  )

  def run(x_TD, gates_TK, weights):
    y_TD, pull = jax.vjp(
      lambda *a: routed_ffn_op(a[0], a[1], plan, a[2], dtype=jnp.bfloat16), x_TD, gates_TK, weights
    )
    return pull(y_TD)

  arguments = jnp.ones((8, 8)), jnp.ones((8, 2)), weights
  names = [kernel.name for kernel in traced_kernels(run, arguments)]
  assert [name.removeprefix('routed_ffn_') for name in names if name != 'to_words'] == [
    *('gate_up', 'down', 'combine'),
    *('d_down', 'd_rows', 'd_tokens', 'd_gate_up'),
  ]
  assert 'dot_general' not in [e.primitive.name for e in jax.make_jaxpr(run)(*arguments).eqns]
