"""Matrix products inside kernels: float32 sums; float32 operands at full precision,
not rounded to bfloat16.

I rows, X contracted, Y columns of the result.
"""

import jax
import jax.numpy as jnp
from jax import lax


def dot(a_IX: jax.Array, b_XY: jax.Array) -> jax.Array:
  return _dot(a_IX, b_XY, 1, 0)


def dot_nt(a_IY: jax.Array, b_XY: jax.Array) -> jax.Array:
  """a bᵀ; the transpose happens in the matrix unit's loads."""
  return _dot(a_IY, b_XY, 1, 1)


def dot_tn(a_IX: jax.Array, b_IY: jax.Array) -> jax.Array:
  """aᵀ b."""
  return _dot(a_IX, b_IY, 0, 0)


def _dot(a, b, a_axis, b_axis):
  precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else lax.Precision.DEFAULT
  dimensions = (((a_axis,), (b_axis,)), ((), ()))
  return lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=jnp.float32)
