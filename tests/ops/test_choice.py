"""Which implementation of an op runs: the one asked for, and no other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.ops import combine, dispatch, grouped_matmul, routed_ffn
from moe.ops.combine import combine as run_combine
from moe.ops.dispatch import dispatch as run_dispatch
from moe.ops.grouped_matmul import grouped_matmul as run_grouped_matmul
from moe.ops.implementation import Implementation, choose
from moe.ops.plan import make_plan
from moe.ops.routed_ffn import ExpertWeights
from moe.ops.routed_ffn import routed_ffn as run_routed_ffn
from tests.ops.modules import module

TOKENS_TD, GATES_TK, PLAN = jnp.ones((2, 3)), jnp.ones((2, 1)), make_plan(jnp.array([[1], [0]]), 2)
WEIGHTS = ExpertWeights(jnp.ones((2, 3, 4)), jnp.ones((2, 3, 4)), jnp.ones((2, 4, 3)))

CALLS = {
  'dispatch': lambda name: run_dispatch(TOKENS_TD, PLAN, implementation=name),
  'combine': lambda name: run_combine(TOKENS_TD, GATES_TK, PLAN, implementation=name),
  'grouped_matmul': lambda name: run_grouped_matmul(
    TOKENS_TD, WEIGHTS.gate_EDF, PLAN.group_sizes_E, implementation=name
  ),
  'routed_ffn': lambda name: run_routed_ffn(TOKENS_TD, GATES_TK, PLAN, WEIGHTS, dtype=jnp.float32, implementation=name),
}
CASES = [
  (op, asked, 'cpu', 'reference' if asked == 'reference' else 'scan' if op == 'routed_ffn' else 'xla')
  for op in CALLS
  for asked in ('auto', 'reference', 'xla')
] + [('routed_ffn', asked, platform, 'grouped') for asked in ('auto', 'xla') for platform in ('gpu', 'tpu')]


@pytest.mark.parametrize(('op', 'asked', 'platform', 'expected'), CASES)
def test_the_implementation_asked_for_runs_and_never_falls_back(monkeypatch, op, asked, platform, expected):
  def refuse(*arguments):
    raise NotImplementedError('not here')

  monkeypatch.setattr(jax, 'default_backend', lambda: platform)
  monkeypatch.setattr(module(op, expected), op, refuse)
  with pytest.raises(NotImplementedError, match='not here'):
    CALLS[op](asked)


@pytest.mark.parametrize('op', CALLS)
def test_an_unknown_implementation_raises(op):
  with pytest.raises(ValueError, match='cuda'):
    CALLS[op]('cuda')


def test_every_choice_of_the_config_is_an_implementation():
  for name in Implementation:
    assert choose('op', name, 'cpu') in (Implementation.REFERENCE, Implementation.XLA)


def test_implementations_are_not_the_same_function():
  for op, names in (
    (dispatch, ('reference', 'xla')),
    (combine, ('reference', 'xla')),
    (grouped_matmul, ('reference', 'xla')),
    (routed_ffn, ('reference', 'grouped', 'scan')),
  ):
    op_name = op.__name__.rpartition('.')[2]
    assert len({id(getattr(module(op_name, name), op_name)) for name in names}) == len(names)


def test_the_calls_work_at_all():
  for call in CALLS.values():
    assert np.isfinite(call('auto')).all()
