"""The Triton kernels on CPU, in Pallas' interpreter, through the suites that every implementation passes.

The kernels take tiles of 64 and more where arrays are large enough; so besides the suites' tiny shapes there is one
with several tiles each way, none of them full.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.ops.attention import attention
from moe.ops.combine import combine
from moe.ops.dispatch import dispatch
from moe.ops.dispatch_plan import make_plan
from moe.ops.grouped_matmul import grouped_matmul
from moe.ops.implementation import Unsupported, compiling_for
from moe.ops.routed_ffn import ExpertWeights, routed_ffn
from moe.ops.router import route
from tests import oracles
from tests.moe.ops import test_dispatch_combine, test_grouped_matmul, test_routed_ffn
from tests.moe.ops.routing import routing
from tests.oracles import exact
from tests.small import assert_close

NAME, DTYPES = 'pallas_gpu', (jnp.float32, jnp.bfloat16)


@pytest.fixture(autouse=True)
def interpreted():
  with compiling_for('gpu', interpret=True):
    yield


@pytest.mark.parametrize('dtype', DTYPES)
def test_grouped_product(dtype):
  test_grouped_matmul.test_against_a_loop_over_rows(NAME, dtype)


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('shape', test_dispatch_combine.SHAPES)
def test_dispatch_and_combine(shape, dtype):
  test_dispatch_combine.test_dispatch(shape, NAME, dtype)
  test_dispatch_combine.test_combine(shape, NAME, dtype)


def test_each_is_the_others_transpose():
  test_dispatch_combine.test_each_is_the_others_transpose(NAME)


@pytest.mark.parametrize(
  ('shape', 'dtype'), [((1, 4, 4), jnp.float32), *(((40, 7, 3), d) for d in DTYPES)]
)
def test_the_whole_ffn(shape, dtype):
  test_routed_ffn.test_against_a_loop_over_tokens(shape, dtype, NAME)


@pytest.mark.parametrize('dtype', DTYPES)
def test_group_sizes_around_tile_boundaries(dtype):
  test_routed_ffn.test_group_sizes_around_every_block_boundary(NAME, dtype)


@pytest.mark.parametrize('x_dtype', DTYPES)
@pytest.mark.parametrize('dtype', DTYPES)
def test_types(dtype, x_dtype):
  test_routed_ffn.test_types(NAME, dtype, x_dtype)


@pytest.mark.parametrize('dtype', DTYPES)
def test_several_tiles_each_way(dtype):
  """D = 150 and F = 140 are three tiles in float32, and no multiple of a loop's step in either type."""
  tokens, num_experts, k, width, hidden = 150, 3, 2, 150, 140
  normal = np.random.default_rng(0).normal
  rounded = lambda *shape: jnp.asarray(normal(size=shape), jnp.bfloat16).astype(jnp.float32)
  shapes = (num_experts, width, hidden), (num_experts, width, hidden), (num_experts, hidden, width)
  weights = ExpertWeights(*(rounded(*shape) / 16 for shape in shapes))
  x_TD, dy_TD, gates_TK = rounded(tokens, width), rounded(tokens, width), rounded(tokens, k)
  experts_TK = routing(0, tokens, num_experts, k, 'random')

  @jax.jit
  def run(x_TD, gates_TK, weights, dy_TD):
    plan = make_plan(experts_TK, num_experts)
    ffn = lambda x, g, w: routed_ffn(x, g, plan, w, dtype=dtype, implementation=NAME)
    y_TD, pull = jax.vjp(ffn, x_TD, gates_TK, weights)
    return y_TD, *pull(dy_TD)

  def truth(x_TD, gates_TK, weights):
    gates_TE = (
      jnp.zeros((tokens, num_experts)).at[np.arange(tokens)[:, None], experts_TK].set(gates_TK)
    )
    product = functools.partial(jnp.einsum, precision='highest')
    hidden = jax.nn.silu(product('td,edf->etf', x_TD, weights.gate_EDF)) * product(
      'td,edf->etf', x_TD, weights.up_EDF
    )
    return product('te,etf,efd->td', gates_TE, hidden, weights.down_EFD)

  with jax.enable_x64(True):
    as_double = lambda tree: jax.tree.map(exact, tree)
    y_TD, pull = jax.vjp(truth, *as_double((x_TD, gates_TK, weights)))
    true = jax.device_get((y_TD, *pull(exact(dy_TD))))
  computed = run(x_TD.astype(dtype), gates_TK, weights, dy_TD.astype(dtype))
  for name, a, b in zip(
    ('output', 'd tokens', 'd gates', 'd weights'), computed, true, strict=True
  ):
    assert_close(a, b, 1e-5 if dtype == jnp.float32 else 2e-2, name)


@pytest.mark.parametrize(('num_experts', 'k'), [(5, 2), (3, 3), (40, 7)])
def test_router(num_experts, k):
  """Against the paper's loop over tokens, gradients against the reference's; 70 tokens are several blocks."""
  generator = np.random.default_rng(0)
  logits_BLE = np.float32(2 * generator.normal(size=(2, 70, num_experts)))
  logits_BLE[0, :9] = 0.0  # ties: the lower index
  real_BL = generator.random((2, 70)) < 0.7
  weigh = jax.tree.map(
    lambda x: jnp.asarray(generator.normal(size=x.shape), jnp.float32),
    _floats(logits_BLE, real_BL, k),
  )

  @functools.partial(jax.jit, static_argnames='implementation')
  def run(logits_BLE, implementation):
    routing = route(logits_BLE, real_BL, k, implementation=implementation)
    weighed = lambda x: sum(
      (a * b).sum() for a, b in zip(weigh, _floats(x, real_BL, k, implementation), strict=True)
    )
    return routing, jax.grad(weighed)(logits_BLE)

  (gates_BLK, experts_BLK, stats), gradient_BLE = run(logits_BLE, NAME)
  (true_gates, true_experts, true_stats), true_gradient = run(logits_BLE, 'reference')
  assert experts_BLK.tolist() == true_experts.tolist()
  assert stats.counts_BE.tolist() == true_stats.counts_BE.tolist()
  assert [x.dtype for x in (gates_BLK, experts_BLK, *stats)] == [
    x.dtype for x in (true_gates, true_experts, *true_stats)
  ]
  assert_close(
    (gates_BLK, stats[1:], gradient_BLE), (true_gates, true_stats[1:], true_gradient), 1e-5
  )
  for b, t in ((0, 0), (0, 40), (1, 69)):
    affinities = oracles.softmax(exact(logits_BLE[b, t]))
    chosen = oracles.largest(affinities, k)
    assert experts_BLK[b, t].tolist() == chosen
    assert_close(gates_BLK[b, t], affinities[chosen], 1e-5)


def _floats(logits_BLE, real_BL, k, implementation='reference'):
  gates_BLK, _, stats = route(logits_BLE, real_BL, k, implementation=implementation)
  return gates_BLK, *stats[1:]


def test_attention():
  """Two key/value heads for four query heads of width 8, two documents, a length that fills no block."""
  generator = np.random.default_rng(0)
  array = lambda heads: jnp.asarray(generator.normal(size=(2, 70, heads, 8)), jnp.bfloat16)
  query, keys, values, d_attended = array(4), array(2), array(2), array(4)
  segments_BL = jnp.asarray(np.arange(70) > 30, jnp.int32)[None].repeat(2, axis=0)

  @functools.partial(jax.jit, static_argnames='implementation')
  def run(query, keys, values, d_attended, implementation):
    attend = lambda *heads: attention(*heads, segments_BL, implementation=implementation)
    attended, pull = jax.vjp(attend, query, keys, values)
    return attended, *pull(d_attended)

  double = [x.astype(jnp.float32) for x in (query, keys, values, d_attended)]
  assert_close(run(query, keys, values, d_attended, NAME), run(*double, 'reference'), 2e-2)
  with pytest.raises(Unsupported, match='would round float32 to TF32'):
    run(*double, NAME)
  assert_close(run(*double, 'auto'), run(*double, 'reference'), 1e-6)


@pytest.mark.parametrize('dtype', DTYPES)
def test_no_token(dtype):
  empty, plan = jnp.zeros((0, 8), dtype), make_plan(jnp.zeros((0, 2), jnp.int32), 4)
  gates, up, down = jnp.zeros((0, 2)), jnp.ones((4, 8, 5)), jnp.ones((4, 5, 8))
  weights = ExpertWeights(up, up, down)
  calls = {
    'dispatch': (lambda x: dispatch(x, plan, implementation=NAME), (empty,)),
    'combine': (lambda x, g: combine(x, g, plan, implementation=NAME), (empty, gates)),
    'grouped_matmul': (
      lambda x, w: grouped_matmul(x, w, plan.group_sizes_E, implementation=NAME),
      (empty, up.astype(dtype)),
    ),
    'routed_ffn': (
      lambda x, g, w: routed_ffn(x, g, plan, w, dtype=dtype, implementation=NAME),
      (empty, gates, weights),
    ),
    'router': (
      lambda x: route(x, jnp.zeros((2, 0), bool), 2, implementation=NAME)[0],
      (jnp.zeros((2, 0, 4)),),
    ),
  }
  for name, (function, arguments) in calls.items():
    value, pull = jax.vjp(function, *arguments)
    gradients = pull(value)
    assert value.size == 0, name
    assert jax.tree.map(lambda x: (x.shape, x.dtype), gradients) == jax.tree.map(
      lambda x: (x.shape, x.dtype), arguments
    )
    assert all((g == 0).all() for g in jax.tree.leaves(gradients)), name


def kernels(function, *arguments):
  """Names of the Pallas kernels that the function and its gradient run."""

  def run(*floats):
    y, pull = jax.vjp(function, *floats)
    return y, pull(y)

  found = []

  def visit(jaxpr):
    for equation in jaxpr.eqns:
      if equation.primitive.name == 'pallas_call':
        found.append(equation.params['name'])
      else:
        assert equation.primitive.name not in ('dot_general', 'ragged_dot_general'), (
          'a product outside a kernel'
        )
        for parameter in jax.tree.leaves(
          equation.params, is_leaf=lambda x: hasattr(x, 'eqns') or hasattr(x, 'jaxpr')
        ):
          if hasattr(parameter, 'eqns') or hasattr(parameter, 'jaxpr'):
            visit(getattr(parameter, 'jaxpr', parameter))

  visit(jax.make_jaxpr(run)(*arguments).jaxpr)
  return found


def test_the_kernels_run_and_nothing_else_multiplies():
  plan, (x, gates) = make_plan(jnp.array([[1], [0]]), 2), (jnp.ones((2, 3)), jnp.ones((2, 1)))
  up, down = jnp.ones((2, 3, 4)), jnp.ones((2, 4, 3))
  ffn = lambda x, g, w: routed_ffn(x, g, plan, w, dtype=jnp.bfloat16)  # 'auto'
  names = (
    'up',
    'down',
    'combine',
    'd_hidden',
    'd_rows',
    'd_tokens',
    'd_up_weights',
    'd_down_weights',
  )
  assert kernels(ffn, x, gates, ExpertWeights(up, up, down)) == [
    f'routed_ffn_{name}' for name in names
  ]
  product = lambda x, w: grouped_matmul(x, w, plan.group_sizes_E)
  assert kernels(product, x, up) == [
    'grouped_matmul',
    'grouped_matmul_d_rows',
    'grouped_matmul_d_weights',
  ]
  assert kernels(lambda x: dispatch(x, plan), x) == ['dispatch', 'dispatch_backward']
  assert kernels(lambda x, g: combine(x, g, plan), x, gates) == ['combine', 'combine_backward']
  assert kernels(lambda x: route(x, jnp.ones((1, 2), bool), 1)[0], x[None]) == [
    'router',
    'router_backward',
  ]
  heads = jnp.ones((1, 2, 1, 4), jnp.bfloat16)
  attend = lambda q: attention(q, heads, heads, jnp.ones((1, 2), jnp.int32))
  assert kernels(attend, heads) == ['mha_forward', 'mha_preprocess_backward', 'mha_backward']
