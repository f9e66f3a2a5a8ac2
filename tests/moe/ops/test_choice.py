"""Which implementation of an op runs: the one asked for, and no other."""

import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.config import OpsConfig
from moe.ops.attention import attention
from moe.ops.combine import combine
from moe.ops.dispatch import dispatch
from moe.ops.dispatch_plan import make_plan
from moe.ops.grouped_matmul import grouped_matmul
from moe.ops.implementation import Implementation, WrongPlatform, compiling_for
from moe.ops.routed_ffn import ExpertWeights, routed_ffn
from moe.ops.router import route
from tests.moe.ops.modules import module

TOKENS_TD, GATES_TK, PLAN = jnp.ones((2, 3)), jnp.ones((2, 1)), make_plan(jnp.array([[1], [0]]), 2)
WEIGHTS = ExpertWeights(jnp.ones((2, 3, 4)), jnp.ones((2, 3, 4)), jnp.ones((2, 4, 3)))
HEADS, ROW = jnp.ones((1, 2, 1, 4)), jnp.ones((1, 2), jnp.int32)

# The function of each op's module that does the work, and a call of its api.
CALLS = {
  'dispatch': ('dispatch', lambda i: dispatch(TOKENS_TD, PLAN, implementation=i)),
  'combine': ('combine', lambda i: combine(TOKENS_TD, GATES_TK, PLAN, implementation=i)),
  'grouped_matmul': (
    'grouped_matmul',
    lambda i: grouped_matmul(TOKENS_TD, WEIGHTS.gate_EDF, PLAN.group_sizes_E, implementation=i),
  ),
  'routed_ffn': (
    'routed_ffn',
    lambda i: routed_ffn(TOKENS_TD, GATES_TK, PLAN, WEIGHTS, dtype=jnp.float32, implementation=i),
  ),
  'router': ('route', lambda i: route(TOKENS_TD[None], ROW > 0, 1, implementation=i)),
  'attention': ('attention', lambda i: attention(HEADS, HEADS, HEADS, ROW, implementation=i)),
}
# asked for, platform → the module that runs, or None where that platform has none. Of routed_ffn's XLA, see below.
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


@pytest.mark.parametrize(('asked', 'platform'), RUNS)
@pytest.mark.parametrize('op', CALLS)
def test_the_implementation_asked_for_runs_and_never_falls_back(monkeypatch, op, asked, platform):
  class Ran(Exception):
    pass

  def run(*arguments):
    raise Ran

  function, call = CALLS[op]
  expected = RUNS[asked, platform]
  if expected:
    monkeypatch.setattr(module(op, expected), function, run)
  with pytest.raises(Ran if expected else WrongPlatform), compiling_for(platform):
    call(asked)


@pytest.mark.parametrize(
  ('platform', 'arrangement'), [('cpu', 'tiled'), ('gpu', 'grouped'), ('tpu', 'grouped')]
)
def test_plain_xla_tiles_experts_on_cpu_only(monkeypatch, platform, arrangement):
  called = []
  monkeypatch.setattr(
    module('routed_ffn', arrangement), 'routed_ffn', lambda *arguments: called.append(arrangement)
  )
  with compiling_for(platform):
    CALLS['routed_ffn'][1]('xla')
  assert called == [arrangement]


@pytest.mark.parametrize('op', CALLS)
def test_an_unknown_implementation_raises(op):
  with pytest.raises(ValueError, match='cuda'):
    CALLS[op][1]('cuda')


def test_a_kernel_elsewhere_than_at_home_says_so_in_one_line():
  with pytest.raises(
    WrongPlatform,
    match=r'ops\.implementation=pallas_gpu needs a gpu, this is a cpu: use auto, xla or reference',
  ):
    dispatch(TOKENS_TD, PLAN, implementation='pallas_gpu')


@pytest.mark.parametrize('op', CALLS)
def test_implementations_are_not_the_same_function(op):
  function, _ = CALLS[op]
  names = set(Implementation) - {'auto'}
  # Its readable reference is what XLA does best.
  names -= {'xla'} if op == 'router' else set()
  assert len({id(getattr(module(op, name), function)) for name in names}) == len(names)


def test_the_calls_work_at_all():
  for _, call in CALLS.values():
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(call('auto')))


def test_the_config_offers_every_implementation():
  assert typing.get_args(typing.get_type_hints(OpsConfig)['implementation']) == tuple(
    Implementation
  )
