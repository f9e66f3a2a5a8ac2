"""Rows times the matrix of a group, inside kernels. The matrix is numbers or quantized.

r rows, X contracted, Y columns of the result.
"""

import jax
import jax.numpy as jnp

from moe.ops.quantized import GROUP, HALF, Matrix, Quantized, nibbles
from moe.ops.tpu.dot import dot

# Rows of a quantized matrix that become numbers at a time: a whole one would not fit into VMEM in
# float32. A multiple of GROUP, and of a tile's rows of packed bytes.
_ROWS = 256


def times(x_rX: jax.Array, matrix: Matrix) -> jax.Array:
  """float32 x w_XY. matrix: the ref of a block, or a `Quantized` of refs."""
  if not isinstance(matrix, Quantized):
    return dot(x_rX, matrix[...])
  total, contracted = 0.0, x_rX.shape[1]
  for start in range(0, contracted, _ROWS):
    stop = min(start + _ROWS, contracted)
    total += dot(x_rX[:, start:stop], _numbers(matrix, start, stop).astype(x_rX.dtype))
  return total if matrix.is_packed else total * matrix.scales[...]


def _numbers(matrix, start, stop):
  """float32 rows of the matrix; those of int8 are not yet scaled by column."""
  if not matrix.is_packed:
    return matrix.values[start:stop].astype(jnp.float32)
  groups = (stop - start) // GROUP
  halves = nibbles(matrix.values[start // 2 : stop // 2])
  halves = [half.reshape(groups, HALF, -1) for half in halves]
  scales = matrix.scales[start // GROUP : stop // GROUP].astype(jnp.float32)
  numbers = jnp.concatenate(halves, axis=1) * scales[:, None]
  return numbers.reshape(stop - start, -1)
