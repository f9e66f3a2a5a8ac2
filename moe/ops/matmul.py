"""Matrix products whose operand and result types reach the fast units of every platform,
forward and backward.

Operands are both bfloat16 or both float32; the result is float32. On CPU a bfloat16 product with a
bfloat16 result, or with a transposed left operand, is computed in float32 several times slower, so
neither is ever asked for.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax


def matmul(a_MK: jax.Array, b_KN: jax.Array) -> jax.Array:
  """a b, in float32. Leading dimensions of `a` are rows."""
  return _dot(a_MK, b_KN, a_MK.ndim - 1, 0)


def matmul_nt(a_MN: jax.Array, b_KN: jax.Array) -> jax.Array:
  """a bᵀ, in float32: the gradient of `matmul` with respect to its left operand."""
  return _dot(a_MN, b_KN, a_MN.ndim - 1, 1)


def matmul_tn(a_MK: jax.Array, b_MN: jax.Array) -> jax.Array:
  """aᵀ b, in float32: the gradient of `matmul` with respect to its right operand.
  Both are matrices.
  """
  if a_MK.dtype != jnp.bfloat16:
    return _dot(a_MK, b_MN, 0, 0)
  return lax.platform_dependent(
    a_MK,
    b_MN,
    cpu=lambda a, b: _dot(_really_transposed(a), b, 1, 0),
    default=lambda a, b: _dot(a, b, 0, 0),
  )


def batched(a_nMK: jax.Array, b_nKN: jax.Array) -> jax.Array:
  """a b for each of n, in float32."""
  return _dot(a_nMK, b_nKN, 2, 1, batch=True)


def batched_nt(a_nMN: jax.Array, b_nKN: jax.Array) -> jax.Array:
  """a bᵀ for each of n, in float32."""
  return _dot(a_nMN, b_nKN, 2, 2, batch=True)


def batched_tn(a_nMK: jax.Array, b_nMN: jax.Array) -> jax.Array:
  """aᵀ b for each of n, in float32."""
  if a_nMK.dtype != jnp.bfloat16:
    return _dot(a_nMK, b_nMN, 1, 1, batch=True)
  return lax.platform_dependent(
    a_nMK,
    b_nMN,
    cpu=lambda a, b: _dot(_really_transposed(a), b, 2, 1, batch=True),
    default=lambda a, b: _dot(a, b, 1, 1, batch=True),
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def linear(x: jax.Array, w_KN: jax.Array, dtype: jnp.dtype) -> jax.Array:
  """x w computed in `dtype` and returned in it. x (..., K) and w keep their own types,
  and so do their gradients.
  """
  return matmul(x.astype(dtype), w_KN.astype(dtype)).astype(dtype)


def _linear_forward(x, w_KN, dtype):
  return linear(x, w_KN, dtype), (x, w_KN)


def _linear_backward(dtype, residuals, dy):
  x, w_KN = residuals
  dy = dy.astype(dtype)
  dx = matmul_nt(dy, w_KN.astype(dtype)).astype(x.dtype)
  rows = lambda a: a.reshape(-1, a.shape[-1])
  dw_KN = matmul_tn(rows(x.astype(dtype)), rows(dy)).astype(w_KN.dtype)
  return dx, dw_KN


linear.defvjp(_linear_forward, _linear_backward)


def _dot(a, b, a_axis, b_axis, batch=False):
  # HIGHEST: without it a float32 product is rounded to bfloat16 on TPU, to TF32 on GPU.
  precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
  dimensions = (((a_axis,), (b_axis,)), ((0,), (0,)) if batch else ((), ()))
  return lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=jnp.float32)


def _really_transposed(a_MN):
  """aᵀ (of the last two axes) laid out anew; the barrier keeps XLA from folding
  it back into the product.
  """
  a_NM = a_MN.swapaxes(-1, -2)
  return lax.optimization_barrier(a_NM.reshape(-1)).reshape(a_NM.shape)
