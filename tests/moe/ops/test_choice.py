"""The implementation of an op that runs is the one asked for, and no other."""

import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.config import OpsConfig
from moe.ops.attention import api as attention_api
from moe.ops.attention import attention
from moe.ops.combine import api as combine_api
from moe.ops.combine import combine
from moe.ops.dispatch import api as dispatch_api
from moe.ops.dispatch import dispatch
from moe.ops.dispatch_plan import make_plan
from moe.ops.grouped_matmul import api as grouped_matmul_api
from moe.ops.grouped_matmul import grouped_matmul
from moe.ops.implementation import Implementation, Unsupported, _log_once, compiling_for
from moe.ops.routed_ffn import ExpertWeights, few, grouped, routed_ffn, tiled, xla
from moe.ops.routed_ffn import api as routed_ffn_api
from moe.ops.router import api as router_api
from moe.ops.router import route

TOKENS_TD, GATES_TK = jnp.ones((2, 3)), jnp.ones((2, 1))
# Jitted to compile one program only, since every worker imports every file.
PLAN = jax.jit(make_plan, static_argnums=1)(np.array([[1], [0]]), 2)
WEIGHTS = ExpertWeights(jnp.ones((2, 3, 4)), jnp.ones((2, 3, 4)), jnp.ones((2, 4, 3)))
HEADS, ROW = jnp.ones((1, 2, 1, 4)), jnp.ones((1, 2), jnp.int32)

# The implementations of each op, and a call of its API.
CALLS = {
  'dispatch': (
    dispatch_api.IMPLEMENTATIONS,
    lambda i: dispatch(TOKENS_TD, PLAN, implementation=i),
  ),
  'combine': (
    combine_api.IMPLEMENTATIONS,
    lambda i: combine(TOKENS_TD, GATES_TK, PLAN, implementation=i),
  ),
  'grouped_matmul': (
    grouped_matmul_api.IMPLEMENTATIONS,
    lambda i: grouped_matmul(TOKENS_TD, WEIGHTS.gate_EDF, PLAN.group_sizes_E, implementation=i),
  ),
  'routed_ffn': (
    routed_ffn_api.IMPLEMENTATIONS,
    lambda i: routed_ffn(TOKENS_TD, GATES_TK, PLAN, WEIGHTS, dtype=jnp.float32, implementation=i),
  ),
  'router': (
    router_api.IMPLEMENTATIONS,
    lambda i: route(TOKENS_TD[None], ROW > 0, 1, implementation=i),
  ),
  'attention': (
    attention_api.IMPLEMENTATIONS,
    lambda i: attention(HEADS, HEADS, HEADS, ROW, implementation=i),
  ),
}
# (asked for, platform) → the module that runs, or None where it cannot run on that platform.
# A test below checks what routed_ffn's 'xla' runs.
RUNS = {
  ('auto', 'cpu'): 'xla',
  ('auto', 'tpu'): 'pallas_tpu',
  ('auto', 'gpu'): 'pallas_gpu',
  ('pallas_tpu', 'cpu'): None,
  ('pallas_tpu', 'gpu'): None,
  ('pallas_tpu', 'tpu'): 'pallas_tpu',
  ('pallas_gpu', 'cpu'): None,
  ('pallas_gpu', 'tpu'): None,
  ('pallas_gpu', 'gpu'): 'pallas_gpu',
} | {(name, platform): name for name in ('reference', 'xla') for platform in ('cpu', 'tpu', 'gpu')}


class Ran(Exception):
  """Raised by the stand-in for an implementation."""


def run(*arguments):
  raise Ran


def refuse(*arguments):
  raise Unsupported('not for these widths')


@pytest.mark.parametrize(('asked', 'platform'), RUNS)
@pytest.mark.parametrize('op', CALLS)
def test_the_implementation_asked_for_runs_and_never_falls_back(monkeypatch, op, asked, platform):
  implementations, call = CALLS[op]
  expected = RUNS[asked, platform]
  if expected:
    monkeypatch.setitem(implementations, expected, run)
  with pytest.raises(Ran if expected else Unsupported), compiling_for(platform):
    call(asked)


@pytest.mark.parametrize('kernels', ['pallas_tpu', 'pallas_gpu'])
@pytest.mark.parametrize('op', CALLS)
def test_where_kernels_refuse_auto_takes_the_next_and_an_explicit_choice_fails(
  monkeypatch, caplog, op, kernels
):
  implementations, call = CALLS[op]
  # A message that was logged once is not logged again.
  _log_once.cache_clear()
  monkeypatch.setitem(implementations, kernels, refuse)
  monkeypatch.setitem(implementations, 'xla', run)
  with compiling_for(kernels.removeprefix('pallas_')), caplog.at_level('INFO', 'moe.ops'):
    with pytest.raises(Unsupported, match='not for these widths'):
      call(kernels)
    with pytest.raises(Ran):
      call('auto')
  assert f'{op}: not {kernels} (not for these widths) on' in caplog.text
  assert f'{op}: xla on' in caplog.text


def test_an_error_of_a_kernel_that_is_no_refusal_is_not_hidden(monkeypatch):
  implementations, call = CALLS['dispatch']

  def fail(*arguments):
    raise NotImplementedError('a fault')

  monkeypatch.setitem(implementations, 'pallas_tpu', fail)
  with compiling_for('tpu'), pytest.raises(NotImplementedError, match='a fault'):
    call('auto')


def test_a_jitted_function_is_traced_again_for_another_platform(monkeypatch):
  """A trace of the same function and shape for one platform must not be reused for another."""
  implementations, traced = dispatch_api.IMPLEMENTATIONS, []

  def standing_in(name):
    def record(tokens_TD, plan):
      traced.append(name)
      return tokens_TD[plan.token_R]

    return record

  for name in ('xla', 'pallas_tpu', 'pallas_gpu'):
    monkeypatch.setitem(implementations, name, standing_in(name))
  step = jax.jit(jax.grad(jax.checkpoint(lambda x: dispatch(x, PLAN).sum())))
  step(TOKENS_TD)
  for platform in ('tpu', 'gpu', 'tpu'):
    with compiling_for(platform):
      step(TOKENS_TD)
  step(TOKENS_TD)
  assert list(dict.fromkeys(traced)) == ['xla', 'pallas_tpu', 'pallas_gpu']


@pytest.mark.parametrize(
  ('platform', 'arrangement'), [('cpu', tiled), ('gpu', grouped), ('tpu', grouped)]
)
def test_plain_xla_tiles_experts_on_cpu_only(monkeypatch, platform, arrangement):
  """For a few tokens, it runs one expert after another on every platform."""
  with monkeypatch.context() as few_tokens:
    few_tokens.setattr(few, 'routed_ffn', run)
    with pytest.raises(Ran), compiling_for(platform):
      CALLS['routed_ffn'][1]('xla')
  monkeypatch.setattr(xla, 'FEW', 1)
  monkeypatch.setattr(arrangement, 'routed_ffn', run)
  with pytest.raises(Ran), compiling_for(platform):
    CALLS['routed_ffn'][1]('xla')


@pytest.mark.parametrize('op', CALLS)
def test_an_unknown_implementation_raises(op):
  with pytest.raises(ValueError, match='cuda'):
    CALLS[op][1]('cuda')


def test_a_kernel_elsewhere_than_at_home_says_so_in_one_line():
  with pytest.raises(
    Unsupported,
    match=r'ops\.implementation=pallas_gpu needs a gpu, this is a cpu: use auto, xla or reference',
  ):
    dispatch(TOKENS_TD, PLAN, implementation='pallas_gpu')


@pytest.mark.parametrize('op', CALLS)
def test_implementations_are_not_the_same_function(op):
  implementations, _ = CALLS[op]
  assert set(implementations) == set(Implementation) - {'auto'}
  # The router's readable reference is also its fastest XLA implementation.
  same = {'xla'} if op == 'router' else set()
  names = set(implementations) - same
  assert len({id(implementations[name]) for name in names}) == len(names)


def test_the_calls_work_at_all():
  for _, call in CALLS.values():
    results = jax.jit(call, static_argnums=0)('auto')
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(results))


def test_the_config_offers_every_implementation():
  assert typing.get_args(typing.get_type_hints(OpsConfig)['implementation']) == tuple(
    Implementation
  )
