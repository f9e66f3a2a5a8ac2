"""Rows as 32-bit words: a DMA of one row needs them, since two bfloat16 rows share every sublane.

float32 rows are their own words. Of bfloat16 rows, each 256 columns become 128 words: column j in
the low half, column j + 128 in the high half, so that a kernel packs and unpacks by shifts, without
moving anything between lanes, and any 256 columns can be handled alone. I rows, D columns, W words.
"""

import jax
import jax.numpy as jnp
from jax import lax

LANES = 128


def columns_per_group(dtype: jnp.dtype) -> int:
  """Columns that pack into 128 words; D is padded to a multiple of it."""
  return LANES * 4 // jnp.dtype(dtype).itemsize


def padded_width(width: int, dtype: jnp.dtype) -> int:
  group = columns_per_group(dtype)
  return -(-width // group) * group


def num_words(padded: int, dtype: jnp.dtype) -> int:
  """W of a row of padded width."""
  return padded // columns_per_group(dtype) * LANES


def word_type(dtype: jnp.dtype) -> jnp.dtype:
  return jnp.dtype(jnp.float32 if dtype == jnp.float32 else jnp.uint32)


def pad_columns(x: jax.Array, width: int) -> jax.Array:
  """Zeros up to `width` in the last dimension."""
  missing = width - x.shape[-1]
  return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)]) if missing else x


def unpack(words_IW: jax.Array) -> jax.Array:
  """float32 rows_ID of words, in a kernel."""
  if words_IW.dtype == jnp.float32:
    return words_IW
  parts = []
  for j in range(0, words_IW.shape[1], LANES):
    both = words_IW[:, j : j + LANES]
    parts += [both << 16, both & jnp.uint32(0xFFFF0000)]
  return lax.bitcast_convert_type(jnp.concatenate(parts, axis=1), jnp.float32)


def pack(rows_ID: jax.Array, dtype: jnp.dtype) -> jax.Array:
  """words_IW of float32 rows rounded to `dtype`, in a kernel."""
  if dtype == jnp.float32:
    return rows_ID
  bits = lax.bitcast_convert_type(rows_ID.astype(dtype).astype(jnp.float32), jnp.uint32)
  half = lambda j: bits[:, j : j + LANES]
  return jnp.concatenate(
    [(half(j) >> 16) | half(j + LANES) for j in range(0, bits.shape[1], 2 * LANES)], axis=1
  )
