"""Quantized weights, for programs that only run the model: products read a few bits per weight from
memory and convert them to numbers.

int8: a scale for every column (output channel). int4: a scale for every GROUP rows of a column, two
values per byte: 4.5 bits per weight.

X contracted rows of a matrix, Y its columns, G groups of its rows.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from moe.errors import UserError

# Rows of a column that share a scale in int4.
GROUP = 32
HALF = GROUP // 2


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Quantized:
  """A matrix, or a stack of them along leading axes; inside kernels, the refs of its two arrays."""

  # int8 (…, X, Y); or uint8 (…, X/2, Y): each group's first half of rows in the low four bits, its
  # second half in the high four, each value plus 8.
  values: jax.Array
  # float32 (…, 1, Y); or bfloat16 (…, G, Y).
  scales: jax.Array

  @property
  def is_packed(self) -> bool:
    return self.values.dtype == jnp.uint8

  @property
  def shape(self) -> tuple[int, ...]:
    """The shape of the numbers that it stands for."""
    *leading, rows, columns = self.values.shape
    return *leading, rows * (2 if self.is_packed else 1), columns

  @property
  def ndim(self) -> int:
    return self.values.ndim

  @property
  def nbytes(self) -> int:
    return self.values.nbytes + self.scales.nbytes


Matrix = jax.Array | Quantized


def bits(kind: str) -> float:
  """Bits per weight, with the scales' share included unless that vanishes for large X."""
  return 4 + 16 / GROUP if kind == 'int4' else 8


@functools.partial(jax.jit, static_argnames='kind')
def quantize(w: jax.Array, kind: str) -> Quantized:
  """w (…, X, Y) rounded to the nearest value of this kind; 0 stays 0.

  Raises UserError if int4's groups do not divide X.
  """
  w = w.astype(jnp.float32)
  if kind == 'int8':
    scales = _not_zero(jnp.abs(w).max(axis=-2, keepdims=True) / 127)
    return Quantized(jnp.round(w / scales).astype(jnp.int8), scales)
  *leading, rows, columns = w.shape
  if rows % GROUP:
    raise UserError(
      f'int4 has one scale per {GROUP} rows of a matrix: {rows} rows are not a multiple of {GROUP}'
    )
  grouped = w.reshape(*leading, rows // GROUP, GROUP, columns)
  # int4 has −8 but not 8: the largest by magnitude becomes −8, whatever its sign.
  low, high = grouped.min(axis=-2), grouped.max(axis=-2)
  scales = _not_zero(jnp.where(-low > high, low, high) / -8).astype(jnp.bfloat16)
  near = jnp.round(grouped / scales.astype(jnp.float32)[..., None, :])
  nibbles = (jnp.clip(near, -8, 7) + 8).astype(jnp.uint8)
  first, second = nibbles[..., :HALF, :], nibbles[..., HALF:, :]
  return Quantized((first | second << 4).reshape(*leading, rows // 2, columns), scales)


def as_numbers(w: Matrix, dtype: jnp.dtype) -> jax.Array:
  """The numbers that w stands for, in `dtype`."""
  if not isinstance(w, Quantized):
    return w.astype(dtype)
  if not w.is_packed:
    return (w.values.astype(jnp.float32) * w.scales).astype(dtype)
  *leading, groups, columns = w.scales.shape
  values = w.values.reshape(*leading, groups, HALF, columns)
  numbers = jnp.concatenate(nibbles(values), axis=-2) * w.scales.astype(jnp.float32)[..., None, :]
  return numbers.reshape(w.shape).astype(dtype)


def as_products_take(w: Matrix, dtype: jnp.dtype) -> Matrix:
  """w in `dtype`, or unchanged if quantized: kernels read that as it is."""
  return w if isinstance(w, Quantized) else w.astype(dtype)


def nibbles(values: jax.Array) -> tuple[jax.Array, jax.Array]:
  """float32 values of the low four bits and of the high four, before scales."""
  wide = values.astype(jnp.int32)
  return (wide & 15).astype(jnp.float32) - 8, (wide >> 4).astype(jnp.float32) - 8


def _not_zero(scales):
  """The scales, with 1 for 0: for a column of zeros any scale does."""
  return jnp.where(scales == 0, 1, scales)
