"""The kernels: which ones run, that nothing else multiplies, that a race would be seen, and batches
without a token.
"""

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from moe.ops.attention import attention
from moe.ops.combine import combine
from moe.ops.dispatch import dispatch
from moe.ops.dispatch_plan import make_plan
from moe.ops.gpu import grouped as gpu_products
from moe.ops.gpu.kernels import out_of_registers
from moe.ops.grouped_matmul import grouped_matmul
from moe.ops.implementation import compiling_for
from moe.ops.routed_ffn import ExpertWeights, grouped, pallas_gpu, reference, routed_ffn
from moe.ops.router import route
from moe.planner.kernels import names
from tests.moe.ops.backends import DTYPES, TPU, over
from tests.moe.ops.routing import routing
from tests.small import assert_close

# The kernels that an op and its gradient run, in this order.
KERNELS = {
  'pallas_tpu': {
    'dispatch': ['dispatch', 'dispatch_d_tokens'],
    'combine': ['combine', 'combine_d_rows'],
    'grouped_matmul': [
      'grouped_matmul',
      'grouped_matmul_d_rows',
      'grouped_matmul_d_weights',
    ],
    'routed_ffn': [
      *('routed_ffn_gate_up', 'routed_ffn_down', 'routed_ffn_combine'),
      *('routed_ffn_d_down', 'routed_ffn_d_rows', 'routed_ffn_d_tokens', 'routed_ffn_d_gate_up'),
    ],
    'router': ['router', 'router_d_logits'],
  },
  'pallas_gpu': {
    'dispatch': ['dispatch', 'dispatch_backward'],
    'combine': ['combine', 'combine_backward'],
    'grouped_matmul': [
      'grouped_matmul',
      'grouped_matmul_d_rows',
      'grouped_matmul_d_weights',
    ],
    'routed_ffn': [
      *('routed_ffn_up', 'routed_ffn_down', 'routed_ffn_combine'),
      *('routed_ffn_d_hidden', 'routed_ffn_d_rows', 'routed_ffn_d_tokens'),
      *('routed_ffn_d_up_weights', 'routed_ffn_d_down_weights'),
    ],
    'router': ['router', 'router_backward'],
    'attention': ['mha_forward', 'mha_preprocess_backward', 'mha_backward'],
  },
}
# Kernels that prepare operands for others and belong to no op.
HELPERS = {'to_words'}


def kernels(function, *arguments):
  """Names of the Pallas kernels that the function and its gradient run.
  Asserts that there is no matrix product outside a kernel.
  """

  def run(*floats):
    y, pull = jax.vjp(function, *floats)
    return y, pull(y)

  found = []

  def visit(jaxpr):
    for equation in jaxpr.eqns:
      if equation.primitive.name == 'pallas_call':
        found.append(equation.params['name'])
        continue
      products = ('dot_general', 'ragged_dot_general')
      assert equation.primitive.name not in products, 'a product outside a kernel'
      is_jaxpr = lambda x: hasattr(x, 'eqns') or hasattr(x, 'jaxpr')
      for parameter in jax.tree.leaves(equation.params, is_leaf=is_jaxpr):
        if is_jaxpr(parameter):
          visit(getattr(parameter, 'jaxpr', parameter))

  visit(jax.make_jaxpr(run)(*arguments).jaxpr)
  return [name for name in found if name not in HELPERS]


def calls(dtype, tokens, implementation):
  """{op: (a call on `tokens` tokens, its float arguments)}."""
  e, k, d, f = 4, 2, 8, 5
  plan = make_plan(jnp.asarray(routing(0, tokens, e, k, 'random')), e)
  x_TD, rows_RD, gates_TK = (
    jnp.ones((tokens, d), dtype),
    jnp.ones((tokens * k, d), dtype),
    jnp.ones((tokens, k)),
  )
  up_EDF = jnp.ones((e, d, f))
  weights = ExpertWeights(up_EDF, up_EDF, jnp.ones((e, f, d)))
  real_BL, heads = jnp.ones((2, tokens), bool), jnp.ones((2, tokens, 2, 8), dtype)
  chosen = {'implementation': implementation}
  return {
    'dispatch': (lambda x: dispatch(x, plan, **chosen), (x_TD,)),
    'combine': (lambda r, g: combine(r, g, plan, **chosen), (rows_RD, gates_TK)),
    'grouped_matmul': (
      lambda r, w: grouped_matmul(r, w, plan.group_sizes_E, **chosen),
      (rows_RD, up_EDF.astype(dtype)),
    ),
    'routed_ffn': (
      lambda x, g, w: routed_ffn(x, g, plan, w, dtype=dtype, **chosen),
      (x_TD, gates_TK, weights),
    ),
    'router': (
      lambda logits: route(logits, real_BL, k, **chosen)[0],
      (jnp.ones((2, tokens, e)),),
    ),
    'attention': (
      lambda *x: attention(*x, jnp.ones((2, tokens), jnp.int32), **chosen),
      (heads, heads, heads),
    ),
  }


@over('op', KERNELS)
def test_auto_runs_the_declared_kernels_and_nothing_else_multiplies(implementation, op):
  expected = KERNELS[implementation][op]
  function, arguments = calls(jnp.bfloat16, 8, 'auto')[op]
  assert kernels(function, *arguments) == expected
  declared = {'pallas_tpu': names.TPU, 'pallas_gpu': names.GPU}[implementation][op]
  assert [kernel.name for kernel in declared] == expected


@pytest.mark.parametrize('implementation', KERNELS, indirect=True)
def test_the_routed_ffn_of_three_ops_runs_their_kernels(implementation):
  """Forward runs dispatch, three products and combine; backward runs theirs in reverse. XLA
  computes no product.
  """
  plan = make_plan(jnp.asarray(routing(0, 8, 4, 2, 'random')), 4)
  weights = ExpertWeights(*[jnp.ones((4, 8, 8))] * 3)
  ffn = lambda x, g, w: grouped.routed_ffn(x, g, plan, w, jnp.bfloat16, implementation)
  found = kernels(ffn, jnp.ones((8, 8)), jnp.ones((8, 2)), weights)
  own = KERNELS[implementation]
  product, d_rows, d_weights = own['grouped_matmul']
  forward = [own['dispatch'][0], *[product] * 3, own['combine'][0]]
  backward = [own['combine'][1], *[d_rows, d_weights] * 3, own['dispatch'][1]]
  assert found == forward + backward


@over('op, dtype', {i: [(op, t) for op in KERNELS['pallas_gpu'] for t in DTYPES] for i in KERNELS})
def test_no_token(implementation, op, dtype):
  function, arguments = calls(dtype, 0, implementation)[op]

  @jax.jit
  def run(*arguments):
    value, pull = jax.vjp(function, *arguments)
    return value, pull(value)

  value, gradients = run(*arguments)
  assert value.size == 0
  described = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
  assert described(gradients) == described(arguments)
  assert all((g == 0).all() for g in jax.tree.leaves(gradients))


@pytest.mark.parametrize('implementation', KERNELS, indirect=True)
def test_no_token_is_counted_by_no_expert(implementation):
  none = jnp.zeros((2, 0, 3)), jnp.zeros((2, 0), bool)
  routing_of_none = route(*none, 2, implementation=implementation)
  assert routing_of_none.stats.counts_BE.tolist() == [[0] * 3] * 2


@pytest.mark.parametrize(
  ('kind', 'expected'),
  [('NVIDIA A100-SXM4-40GB', True), ('NVIDIA H100 80GB HBM3', False), ('NVIDIA H200', False)],
)
def test_the_gpu_that_is_compiled_for_says_where_products_take_operands(kind, expected):
  device = jax.sharding.AbstractDevice(kind, None, 'gpu')
  mesh = jax.sharding.AbstractMesh((1,), ('device',), abstract_device=device)
  with jax.sharding.use_abstract_mesh(mesh):
    assert out_of_registers() == expected
  assert not out_of_registers()  # on a CPU, which interprets kernels


def test_half_of_the_columns_where_operands_need_registers(monkeypatch):
  """Every product has several tiles of columns. The reference gives the truth."""
  plan = make_plan(jnp.asarray(routing(0, 40, 3, 2, 'random')), 3)
  draw = iter(jax.random.split(jax.random.key(0), 6))
  of = lambda *shape: jax.random.normal(next(draw), shape) / 8
  weights = ExpertWeights(of(3, 136, 200), of(3, 136, 200), of(3, 200, 136))
  tokens_TD, gates_TK, dy_TD = of(40, 136), of(40, 2), of(40, 136)
  ffn = lambda run: lambda x, g, w: run(x, g, plan, w, jnp.bfloat16)
  made = {}
  for name, run in (('reference', reference.routed_ffn), ('kernels', pallas_gpu.routed_ffn)):
    with compiling_for('gpu', interpret=True):
      monkeypatch.setattr(gpu_products, 'out_of_registers', lambda: True)
      y_TD, pull = jax.vjp(ffn(run), tokens_TD, gates_TK, weights)
      made[name] = y_TD, *pull(dy_TD.astype(y_TD.dtype))
  assert gpu_products._share(2, 2) == 4 and gpu_products._share(1, 1) == 1
  for ours, truth in zip(*(jax.tree.leaves(made[name]) for name in ('kernels', 'reference'))):
    assert_close(ours, truth, 2e-2)


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
    interpret=TPU,
  )
  try:
    jax.block_until_ready(call(x))
    seen = capfd.readouterr().out
  except jax.errors.JaxRuntimeError as error:  # newer interpreters raise instead of printing
    seen = str(error)
    capfd.readouterr()
  assert 'race' in seen.lower()
