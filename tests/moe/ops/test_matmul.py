"""The matrix products: values, gradients and their dtypes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.ops.matmul import batched, batched_nt, batched_tn, linear, matmul, matmul_nt, matmul_tn
from moe.ops.swiglu import activation, swiglu, swiglu_gradients
from tests import oracles
from tests.oracles import exact
from tests.small import assert_close

DTYPES = [jnp.float32, jnp.bfloat16]


def _normal(*shape, dtype=jnp.float32):
  return jnp.asarray(np.random.default_rng(len(shape) + shape[-1]).normal(size=shape), dtype)


@pytest.mark.parametrize('dtype', DTYPES)
def test_products_are_summed_in_float32(dtype):
  a_IX, b_XY, c_IY = (
    _normal(3, 50, dtype=dtype),
    _normal(50, 4, dtype=dtype),
    _normal(3, 4, dtype=dtype),
  )
  a, b, c = map(exact, (a_IX, b_XY, c_IY))
  for computed, truth in (
    (jax.jit(matmul)(a_IX, b_XY), a @ b),
    (jax.jit(matmul_nt)(c_IY, b_XY), c @ b.T),
    (jax.jit(matmul_tn)(a_IX, c_IY), a.T @ c),
    (jax.jit(matmul)(a_IX[None], b_XY), (a @ b)[None]),
  ):
    assert computed.dtype == jnp.float32
    assert_close(computed, truth, 1e-6)


@pytest.mark.parametrize('x_dtype', DTYPES)
@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('leading', [(5,), (2, 5)])
def test_linear(leading, dtype, x_dtype):
  x, w_XY, dy = (
    _normal(*leading, 6, dtype=x_dtype),
    _normal(6, 7),
    _normal(*leading, 7, dtype=dtype),
  )

  @jax.jit
  def run(x, w_XY, dy):
    y, pull = jax.vjp(functools.partial(linear, dtype=dtype), x, w_XY)
    return y, *pull(dy)

  y, dx, dw_XY = run(x, w_XY, dy)
  assert (y.dtype, dx.dtype, dw_XY.dtype) == (dtype, x_dtype, jnp.float32)
  rows = lambda a: exact(a).reshape(-1, a.shape[-1])
  relative = 1e-6 if dtype == x_dtype == jnp.float32 else 2**-6
  assert_close(rows(y), rows(x) @ exact(w_XY), relative)
  assert_close(rows(dx), rows(dy) @ exact(w_XY).T, relative)
  assert_close(dw_XY, rows(x).T @ rows(dy), relative)


@pytest.mark.parametrize('dtype', DTYPES)
def test_swiglu(dtype):
  gate_F = jnp.asarray([-100.0, -20, -3, -1, 0, 0.5, 1, 4, 100], dtype)
  up_F, d_F = _normal(9, dtype=dtype), _normal(9)
  truth, d_gate, d_up = [], [], []
  for g, u, d in zip(exact(gate_F), exact(up_F), exact(d_F)):
    expert = oracles.Expert(np.array([[g]]), np.array([[u]]), np.eye(1))  # its input is 1
    truth += oracles.ffn(np.ones(1), expert).tolist()
    gradients = oracles.ffn_gradients(np.ones(1), expert, np.array([d]))[1]
    d_gate.append(gradients.gate_DF.item())
    d_up.append(gradients.up_DF.item())
  assert_close(swiglu(gate_F, up_F), np.array(truth), 1e-6)
  assert_close(swiglu_gradients(gate_F, up_F, d_F), (np.array(d_gate), np.array(d_up)), 1e-6)
  assert swiglu(gate_F, up_F).dtype == jnp.float32


@pytest.mark.parametrize('dtype', DTYPES)
def test_activation_is_swiglu_in_the_operands_type(dtype):
  gate, up, cotangent = (
    _normal(6, 7, dtype=dtype),
    _normal(6, 7, dtype=dtype) * 2,
    _normal(6, 7, dtype=dtype) + 1,
  )
  y, pull = jax.vjp(activation, gate, up)
  g, u, d = exact(gate), exact(up), exact(cotangent)
  s = 1 / (1 + np.exp(-g))
  relative = 1e-6 if dtype == jnp.float32 else 2**-8
  assert_close(y, g * s * u, relative)
  assert_close(pull(cotangent), (d * u * (s + g * s * (1 - s)), d * g * s), relative)
  assert {x.dtype for x in (y, *pull(cotangent))} == {jnp.dtype(dtype)}


@pytest.mark.parametrize('dtype', DTYPES)
def test_batched_products_are_one_product_each(dtype):
  a_nIX, b_nXY, c_nIY = (
    _normal(3, 5, 6, dtype=dtype),
    _normal(3, 6, 4, dtype=dtype),
    _normal(3, 5, 4, dtype=dtype),
  )
  for computed, product in (
    (batched(a_nIX, b_nXY), lambda n: exact(a_nIX[n]) @ exact(b_nXY[n])),
    (batched_nt(c_nIY, b_nXY), lambda n: exact(c_nIY[n]) @ exact(b_nXY[n]).T),
    (batched_tn(a_nIX, c_nIY), lambda n: exact(a_nIX[n]).T @ exact(c_nIY[n])),
  ):
    assert computed.dtype == jnp.float32
    assert_close(computed, np.stack([product(n) for n in range(3)]), 1e-6)
