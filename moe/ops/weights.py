"""Products with a weight as it is stored: numbers of any type, or quantized.

I rows, X contracted, Y columns of the result.
"""

import jax
import jax.numpy as jnp

from moe.ops import matmul
from moe.ops.grouped_matmul import grouped_matmul
from moe.ops.implementation import platform
from moe.ops.quantized import GROUP, Matrix, Quantized, as_numbers

# A GPU computes a product of at most _FEW_ROWS rows in about _PROGRAMS programs of _COLUMNS columns
# each, so that all of its cores read.
_PROGRAMS, _COLUMNS, _FEW_ROWS = 256, 64, 16


def linear(x: jax.Array, w_XY: Matrix, dtype: jnp.dtype, implementation: str = 'auto') -> jax.Array:
  """x w computed in `dtype` and returned in it. x (..., X). Not to be differentiated with a
  quantized weight.
  """
  if isinstance(w_XY, Quantized):
    return product(x.astype(dtype), w_XY, implementation).astype(dtype)
  return matmul.linear(x, w_XY, dtype)


def product(a_IX: jax.Array, w_XY: Matrix, implementation: str = 'auto') -> jax.Array:
  """a w, in float32, computed in a's type. Leading dimensions of `a` are rows.

  One scale per column multiplies the result. Packed weights become numbers inside kernels, where
  the platform has them: XLA would write all the numbers to memory, for every product.
  """
  if not isinstance(w_XY, Quantized):
    return matmul.matmul(a_IX, w_XY.astype(a_IX.dtype))
  if not w_XY.is_packed:
    scales = w_XY.scales.reshape(*[1] * (a_IX.ndim - 1), -1)
    return matmul.matmul(a_IX, w_XY.values.astype(a_IX.dtype)) * scales
  if platform() == 'cpu' or implementation in ('xla', 'reference'):
    return matmul.matmul(a_IX, as_numbers(w_XY, a_IX.dtype))
  *leading, contracted = a_IX.shape
  y_RY = _by_kernel(a_IX.reshape(-1, contracted), w_XY, implementation)
  return y_RY.reshape(*leading, -1)


def _by_kernel(a_RX, w_XY, implementation):
  """a w as a grouped product: of a single group, or of one per part of X, which are summed."""
  rows, (contracted, columns) = a_RX.shape[0], w_XY.shape
  parts = _parts(rows, contracted, columns) if platform() == 'gpu' else 1
  w_PXY = jax.tree.map(lambda w: w.reshape(parts, -1, columns), w_XY)
  a_PRX = a_RX.reshape(rows, parts, -1).swapaxes(0, 1)
  sizes_P = jnp.full(parts, rows, jnp.int32)
  a_RX = a_PRX.reshape(parts * rows, -1)
  y_RY = grouped_matmul(a_RX, w_PXY, sizes_P, implementation=implementation)
  return y_RY.reshape(parts, rows, columns).sum(axis=0)


def _parts(rows, contracted, columns):
  """How many parts X is cut into, each of several whole groups, to make enough programs for few
  rows.
  """
  if rows > _FEW_ROWS:
    return 1
  groups, programs = contracted // GROUP, -(-columns // _COLUMNS)
  needed = -(-_PROGRAMS // programs)
  possible = [parts for parts in range(1, groups // 2 + 1) if groups % parts == 0] or [1]
  return next((parts for parts in possible if parts >= needed), possible[-1])
