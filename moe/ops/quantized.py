"""Weights of a few bits, for programs that only run the model: products read them from memory and
take them as numbers.

int8: a scale for every column (output channel). int4: a scale for every GROUP rows of a column, two
values a byte: 4.5 bits a weight.

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

  # int8 (…, X, Y); or uint8 (…, X/2, Y): of each group its first half's rows in the low four bits,
  # the second half's in the high ones, each plus 8.
  values: jax.Array
  # float32 (…, 1, Y); or bfloat16 (…, G, Y).
  scales: jax.Array

  @property
  def is_packed(self) -> bool:
    return self.values.dtype == jnp.uint8

  @property
  def shape(self) -> tuple[int, ...]:
    """Of the numbers it stands for."""
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
  """Of a weight, the scales' share included where that does not vanish with X."""
  return 4 + 16 / GROUP if kind == 'int4' else 8


@functools.partial(jax.jit, static_argnames='kind')
def quantize(w: jax.Array, kind: str) -> Quantized:
  """w (…, X, Y) rounded to the nearest value there is; 0 stays 0.

  UserError where int4's groups do not divide X.
  """
  w = w.astype(jnp.float32)
  if kind == 'int8':
    scales = _not_zero(jnp.abs(w).max(axis=-2, keepdims=True) / 127)
    return Quantized(jnp.round(w / scales).astype(jnp.int8), scales)
  *leading, rows, columns = w.shape
  if rows % GROUP:
    raise UserError(f'int4 has a scale for every {GROUP} rows of a matrix: {rows} are no multiple')
  grouped = w.reshape(*leading, rows // GROUP, GROUP, columns)
  # −8 there is, 8 there is not: the largest by magnitude becomes −8, whichever its sign.
  low, high = grouped.min(axis=-2), grouped.max(axis=-2)
  scales = _not_zero(jnp.where(-low > high, low, high) / -8).astype(jnp.bfloat16)
  near = jnp.round(grouped / scales.astype(jnp.float32)[..., None, :])
  nibbles = (jnp.clip(near, -8, 7) + 8).astype(jnp.uint8)
  first, second = nibbles[..., :HALF, :], nibbles[..., HALF:, :]
  return Quantized((first | second << 4).reshape(*leading, rows // 2, columns), scales)


def as_numbers(w: Matrix, dtype: jnp.dtype) -> jax.Array:
  """What w stands for, in `dtype`."""
  if not isinstance(w, Quantized):
    return w.astype(dtype)
  if not w.is_packed:
    return (w.values.astype(jnp.float32) * w.scales).astype(dtype)
  *leading, groups, columns = w.scales.shape
  values = w.values.reshape(*leading, groups, HALF, columns)
  numbers = jnp.concatenate(nibbles(values), axis=-2) * w.scales.astype(jnp.float32)[..., None, :]
  return numbers.reshape(w.shape).astype(dtype)


def as_products_take(w: Matrix, dtype: jnp.dtype) -> Matrix:
  """w in `dtype`, but for a quantized one, which kernels read as it is."""
  return w if isinstance(w, Quantized) else w.astype(dtype)


def nibbles(values: jax.Array) -> tuple[jax.Array, jax.Array]:
  """float32: what the low four bits stand for before scales, and the high ones."""
  wide = values.astype(jnp.int32)
  return (wide & 15).astype(jnp.float32) - 8, (wide >> 4).astype(jnp.float32) - 8


def _not_zero(scales):
  """Of a column of zeros any scale does."""
  return jnp.where(scales == 0, 1, scales)
