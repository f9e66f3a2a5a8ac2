"""Tiles of the matrices, numbers or quantized, that Triton kernels multiply rows by.

A step takes `step` of a matrix's X rows. From a packed matrix it takes step / 2 bytes of a column,
which are two tiles: the rows in the low four bits, and those in the high ones.
"""

import jax
import jax.numpy as jnp

from moe.ops.gpu.kernels import Span, load, power_of_two, span
from moe.ops.quantized import GROUP, HALF, Matrix, Quantized, nibbles


def step_of(matrix: Matrix, depth: int, largest: int) -> int:
  """Rows of a step: both tiles of a packed matrix must have the 16 that products demand."""
  step = power_of_two(depth, largest)
  return max(step, 32) if _is_packed(matrix) else step


def rows_of(matrix: Matrix, i: jax.Array, step: int, depth: int) -> list[Span]:
  """The rows of X in each tile of step i. matrix: the array, or its ref."""
  if not _is_packed(matrix):
    return [span(i * step, step, depth)]
  bytes_ = _bytes_of(i, step, depth)
  first = bytes_.index // HALF * GROUP + bytes_.index % HALF
  return [Span(first, bytes_.inside), Span(first + HALF, bytes_.inside)]


def tiles(
  matrix: Matrix,
  i: jax.Array,
  step: int,
  depth: int,
  across: Span,
  group: jax.Array,
  dtype: jnp.dtype,
  transposed: bool,
) -> list[jax.Array]:
  """The tiles of step i in `dtype`, without the scales that `scaled` applies to the sum.

  matrix: a ref of (E, X, Y), or of (E, Y, X) if `transposed`; or a `Quantized` of refs.
  """
  if _is_packed(matrix):
    bytes_ = _bytes_of(i, step, depth)
    groups = Span(bytes_.index // HALF, bytes_.inside)
    scales = load(matrix.scales, groups, across, leading=(group,)).astype(jnp.float32)
    values = load(matrix.values, bytes_, across, leading=(group,))
    return [(half * scales).astype(dtype) for half in nibbles(values)]
  along = span(i * step, step, depth)
  if isinstance(matrix, Quantized):
    values = load(matrix.values, along, across, leading=(group,))
    return [values.astype(jnp.float32).astype(dtype)]
  return [load(matrix, *((across, along) if transposed else (along, across)), leading=(group,))]


def scaled(matrix: Matrix, products: jax.Array, across: Span, group: jax.Array) -> jax.Array:
  """`products`, float32 sums over X of columns `across`, times the scales of an int8 matrix."""
  if not isinstance(matrix, Quantized) or _is_packed(matrix):
    return products
  return products * load(matrix.scales, across, leading=(group, 0))[None]


def _is_packed(matrix):
  return isinstance(matrix, Quantized) and matrix.is_packed


def _bytes_of(i, step, depth):
  return span(i * (step // 2), step // 2, depth // 2)
