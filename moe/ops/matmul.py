"""Matrix products whose operand and result types reach the fast units of every platform,
forward and backward.

Operands are both bfloat16 or both float32; the result is float32. On CPU a bfloat16 product with a
bfloat16 result, or with a transposed left operand, is computed in float32 several times slower, so
neither is ever asked for.

I rows, X contracted, Y columns of the result, n products side by side.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from moe.ops.implementation import platform


def matmul(a_IX: jax.Array, b_XY: jax.Array) -> jax.Array:
  """a b, in float32. Leading dimensions of `a` are rows."""
  if platform() == 'gpu' and math.prod(a_IX.shape[:-1]) == 1:
    # XLA would multiply a single row element by element, write the products out, and add them up.
    two = jnp.pad(a_IX.reshape(1, -1), ((0, 1), (0, 0)))
    return lax.optimization_barrier(_dot(two, b_XY, 1, 0))[:1].reshape(*a_IX.shape[:-1], -1)
  return _dot(a_IX, b_XY, a_IX.ndim - 1, 0)


def matmul_nt(a_IY: jax.Array, b_XY: jax.Array) -> jax.Array:
  """a bᵀ, in float32: the gradient of `matmul` with respect to its left operand."""
  return _dot(a_IY, b_XY, a_IY.ndim - 1, 1)


def matmul_tn(a_IX: jax.Array, b_IY: jax.Array) -> jax.Array:
  """aᵀ b, in float32: the gradient of `matmul` with respect to its right operand.
  Both are matrices.
  """
  if a_IX.dtype != jnp.bfloat16:
    return _dot(a_IX, b_IY, 0, 0)
  return lax.platform_dependent(
    a_IX,
    b_IY,
    cpu=lambda a, b: _dot(_really_transposed(a), b, 1, 0),
    default=lambda a, b: _dot(a, b, 0, 0),
  )


def batched(a_nIX: jax.Array, b_nXY: jax.Array) -> jax.Array:
  """a b for each of n, in float32."""
  return _dot(a_nIX, b_nXY, 2, 1, batch=True)


def batched_nt(a_nIY: jax.Array, b_nXY: jax.Array) -> jax.Array:
  """a bᵀ for each of n, in float32."""
  return _dot(a_nIY, b_nXY, 2, 2, batch=True)


def batched_tn(a_nIX: jax.Array, b_nIY: jax.Array) -> jax.Array:
  """aᵀ b for each of n, in float32."""
  if a_nIX.dtype != jnp.bfloat16:
    return _dot(a_nIX, b_nIY, 1, 1, batch=True)
  return lax.platform_dependent(
    a_nIX,
    b_nIY,
    cpu=lambda a, b: _dot(_really_transposed(a), b, 2, 1, batch=True),
    default=lambda a, b: _dot(a, b, 1, 1, batch=True),
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def linear(x: jax.Array, w_XY: jax.Array, dtype: jnp.dtype) -> jax.Array:
  """x w computed in `dtype` and returned in it. x (..., X) and w keep their own types,
  and so do their gradients.
  """
  return matmul(x.astype(dtype), w_XY.astype(dtype)).astype(dtype)


def _linear_forward(x, w_XY, dtype):
  return linear(x, w_XY, dtype), (x, w_XY)


def _linear_backward(dtype, residuals, dy):
  x, w_XY = residuals
  dy = dy.astype(dtype)
  dx = matmul_nt(dy, w_XY.astype(dtype)).astype(x.dtype)
  rows = lambda a: a.reshape(-1, a.shape[-1])
  dw_XY = matmul_tn(rows(x.astype(dtype)), rows(dy)).astype(w_XY.dtype)
  return dx, dw_XY


linear.defvjp(_linear_forward, _linear_backward)


def _dot(a, b, a_axis, b_axis, batch=False):
  # HIGHEST: without it a float32 product is rounded to bfloat16 on TPU, to TF32 on GPU.
  precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
  dimensions = (((a_axis,), (b_axis,)), ((0,), (0,)) if batch else ((), ()))
  return lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=jnp.float32)


def _really_transposed(a_IY):
  """aᵀ (of the last two axes) laid out anew; the barrier keeps XLA from folding
  it back into the product.
  """
  a_YI = a_IY.swapaxes(-1, -2)
  return lax.optimization_barrier(a_YI.reshape(-1)).reshape(a_YI.shape)
