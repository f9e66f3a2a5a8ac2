"""The routed FFN of a few tokens against a loop over them, with weights in every allowed dtype."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.ops.dispatch_plan import make_plan
from moe.ops.routed_ffn import FEW, ExpertWeights, few, reference, routed_ffn
from tests import oracles
from tests.moe.ops.backends import DTYPES
from tests.moe.ops.routing import PATTERNS, routing
from tests.oracles import exact
from tests.small import assert_close

E, K, D, F = 7, 3, 8, 12
TOLERANCE = {jnp.float32: 2e-6, jnp.bfloat16: 2e-2}


@functools.partial(jax.jit, static_argnames=('function', 'dtype'))
def run(function, x_TD, gates_TK, experts_TK, weights, dtype):
  return function(x_TD, gates_TK, make_plan(experts_TK, E), weights, dtype)


def _case(tokens, pattern):
  """Inputs that bfloat16 holds exactly. Weights of experts that no token chose are NaN."""
  generator = np.random.default_rng(0)
  rounded = lambda *shape: np.array(jnp.asarray(generator.normal(size=shape), jnp.bfloat16))
  experts_TK = routing(0, tokens, E, K, pattern)
  weights = [rounded(E, *shape) / 2 for shape in ((D, F), (D, F), (F, D))]
  for w_EXY in weights:
    w_EXY[sorted(set(range(E)) - set(experts_TK.flat))] = np.nan
  return rounded(tokens, D), np.float32(rounded(tokens, K)), experts_TK, ExpertWeights(*weights)


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('tokens', [1, 2, 9, FEW])
def test_against_a_loop_over_tokens(tokens, dtype):
  """The same weights in float32, in bfloat16, and as the bits of bfloat16 give the same output."""
  for pattern in PATTERNS:
    x_TD, gates_TK, experts_TK, weights = _case(tokens, pattern)
    experts = [oracles.Expert(*matrices) for matrices in zip(*map(exact, weights), strict=True)]
    true_TD = oracles.routed_ffn(exact(x_TD), exact(gates_TK), experts_TK, experts)
    assert np.isfinite(true_TD).all()
    of = functools.partial(run, few.routed_ffn, x_TD, gates_TK, experts_TK, dtype=dtype)
    y_TD = of(jax.tree.map(np.float32, weights))
    assert y_TD.dtype == dtype
    assert_close(y_TD, true_TD, TOLERANCE[dtype], pattern)
    assert (of(weights) == y_TD).all()
    assert (of(jax.tree.map(lambda w: w.view(np.uint16), weights)) == y_TD).all()


def _by_xla(x_TD, gates_TK, plan, weights, dtype):
  return routed_ffn(x_TD, gates_TK, plan, weights, dtype=dtype, implementation='xla')


def test_a_row_is_the_same_whoever_is_beside_it():
  """Rows agree bit for bit: a token's products do not depend on other tokens."""
  x_TD, gates_TK, experts_TK, weights = _case(FEW, 'random')
  whole_TD = run(few.routed_ffn, x_TD, gates_TK, experts_TK, weights, jnp.float32)
  for part in (slice(8, 16), slice(3, 12)):
    part_TD = run(
      few.routed_ffn, x_TD[part], gates_TK[part], experts_TK[part], weights, jnp.float32
    )
    assert (part_TD == whole_TD[part]).all()


@pytest.mark.parametrize(('tokens', 'is_few'), [(FEW, True), (FEW + 1, False)])
def test_xla_takes_it_for_few_tokens(tokens, is_few, monkeypatch):
  seen = []
  original = few.routed_ffn
  monkeypatch.setattr(few, 'routed_ffn', lambda *a: seen.append(a) or original(*a))
  x_TD, gates_TK, experts_TK, weights = _case(tokens, 'hot')
  weights = jax.tree.map(lambda w: np.nan_to_num(np.float32(w)).astype(w.dtype), weights)
  bits = jax.tree.map(lambda w: w.view(np.uint16), weights)
  y_TD = run(_by_xla, x_TD, gates_TK, experts_TK, bits, jnp.float32)
  assert bool(seen) == is_few
  true_TD = run(reference.routed_ffn, x_TD, gates_TK, experts_TK, weights, jnp.float32)
  assert_close(y_TD, true_TD, 2e-6)


def test_its_gradients_are_those_of_many_tokens():
  x_TD, gates_TK, experts_TK, weights = _case(5, 'hot')
  weights = jax.tree.map(lambda w: np.nan_to_num(np.float32(w)), weights)
  x_TD = np.float32(x_TD)

  def gradients(function):
    total = lambda x_TD, gates_TK, weights: jnp.square(
      run(function, x_TD, gates_TK, experts_TK, weights, jnp.float32)
    ).sum()
    return jax.grad(total, (0, 1, 2))(x_TD, gates_TK, weights)

  assert_close(gradients(_by_xla), gradients(reference.routed_ffn), 1e-5)
