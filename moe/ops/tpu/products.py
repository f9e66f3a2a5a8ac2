"""Grouped products over a grid of visits: rows × weights, and the weights' gradient.

R rows, E groups, X contracted and Y resulting columns;
`width` is Y padded so that it packs into words.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from moe.ops.quantized import Matrix
from moe.ops.tpu.dot import dot_nt, dot_tn
from moe.ops.tpu.matrices import times
from moe.ops.tpu.visits import (
  Visits,
  balanced_count,
  first_row,
  ragged_tiles_of,
  split_bytes,
  store,
  tiles_of,
  visit_call,
)
from moe.ops.tpu.words import columns_per_group, num_words, pack, word_type


def grouped_product(
  name: str,
  pairs: list[tuple[jax.Array, Matrix]],
  visits: Visits,
  *,
  transposed: bool,
  packed: jnp.dtype | None = None,
) -> jax.Array:
  """Σ over pairs of rows_RX × weights_EXY (or weights_EYX, if `transposed`).

  Args:
    pairs: rows and weights of one type, bfloat16 or float32; weights that are not `transposed` may
      be quantized.
    packed: the type of a result that is wanted as words (Y is then a multiple of
      columns_per_group); None for a float32 result.

  A weight tile is all of X by all of Y or, where that is too big for VMEM, a multiple of 128
  columns.
  """
  rows_RX, weights = pairs[0]
  (num_rows, contracted), size, rows = rows_RX.shape, rows_RX.dtype.itemsize, visits.rows
  width = weights.shape[1 if transposed else 2]
  fixed = 2 * rows * contracted * size * len(pairs)
  # Weights and results, double-buffered, and a sum.
  per_column = 2 * contracted * size * len(pairs) + 12 * rows
  if packed is None:
    per_column += split_bytes(contracted, rows_RX.dtype)
    outer, tile = ragged_tiles_of(width, fixed, per_column)
    words, words_tile, out_type = width, tile, jnp.float32
  else:
    outer, tile = tiles_of(width, columns_per_group(packed), fixed, per_column)
    words, words_tile, out_type = (
      num_words(width, packed),
      num_words(tile, packed),
      word_type(packed),
    )
  arrays, structure = jax.tree.flatten(pairs)
  row_spec = visits.row_spec(contracted, tiled=False)
  specs = lambda w: (
    [visits.group_spec(tile, contracted, tiled=0)] if transposed else visits.matrix_specs(w, tile)
  )
  visited = balanced_count(num_rows, visits.groups, rows)
  moved = (
    outer * num_rows * contracted * size * len(pairs)
    + sum(visits.read_bytes(w) for _, w in pairs)
    + num_rows * words * 4
  )
  return visit_call(
    name,
    functools.partial(
      _product_kernel, visits=visits, structure=structure, transposed=transposed, packed=packed
    ),
    visits,
    *arrays,
    outer=outer,
    in_specs=[spec for _, w in pairs for spec in (row_spec, *specs(w))],
    out_specs=visits.row_spec(words_tile, tiled=True),
    out_shape=jax.ShapeDtypeStruct((num_rows, words), out_type),
    flops=2 * visited * rows * contracted * outer * tile * len(pairs),
    bytes_accessed=moved,
  )


def _product_kernel(group_ref, start_ref, stop_ref, *refs, visits, structure, transposed, packed):
  *operands, out_ref = refs
  product = (lambda a, w_ref: dot_nt(a, w_ref[...])) if transposed else times
  i = pl.program_id(1)

  @pl.when(stop_ref[i] > start_ref[i])
  def _():
    pairs = jax.tree.unflatten(structure, operands)
    total = sum(product(rows_ref[...], w) for rows_ref, w in pairs)
    store(out_ref, total if packed is None else pack(total, packed), first_row(visits, start_ref))


def grouped_outer(name: str, rows_RX: jax.Array, d_rows_RY: jax.Array, visits: Visits) -> jax.Array:
  """float32 d_weights_EXY: rowsᵀ × d_rows of every group.
  `visits` must include empty groups, which get zeros.
  """
  (num_rows, height), width, size = rows_RX.shape, d_rows_RY.shape[1], rows_RX.dtype.itemsize
  num_groups, rows = visits.groups, visits.rows
  outer, tile = ragged_tiles_of(width, 2 * rows * height * size, 8 * height + 2 * rows * size)
  visited = balanced_count(num_rows, num_groups, rows)
  return visit_call(
    name,
    functools.partial(_outer_kernel, visits=visits),
    visits,
    rows_RX,
    d_rows_RY,
    outer=outer,
    in_specs=[visits.row_spec(height, tiled=False), visits.row_spec(tile, tiled=True)],
    out_specs=visits.group_spec(height, tile, tiled=1),
    out_shape=jax.ShapeDtypeStruct((num_groups, height, width), jnp.float32),
    flops=2 * visited * rows * height * outer * tile,
    bytes_accessed=num_rows * (outer * height + width) * size
    + math.prod((num_groups, height, width)) * 4,
  )


def _outer_kernel(group_ref, start_ref, stop_ref, x_ref, dy_ref, out_ref, *, visits):
  zero_new_group(group_ref, out_ref)

  @pl.when(stop_ref[pl.program_id(1)] > start_ref[pl.program_id(1)])
  def _():
    # Both are masked: past row R a block may hold anything, and 0 × NaN is NaN.
    mine = functools.partial(own_rows, visits, start_ref, stop_ref)
    out_ref[...] += dot_tn(mine(x_ref[...]), mine(dy_ref[...]))


def own_rows(visits: Visits, start_ref, stop_ref, x_rX: jax.Array) -> jax.Array:
  """The visit's block with zeros in the rows of other groups."""
  i, first = pl.program_id(1), first_row(visits, start_ref)
  row = jax.lax.broadcasted_iota(jnp.int32, x_rX.shape, 0)
  mine = (row >= first) & (row < first + stop_ref[i] - start_ref[i])
  return jnp.where(mine, x_rX, jnp.zeros_like(x_rX))


def zero_new_group(group_ref, *out_refs) -> None:
  """Clears the gradients of a group's weights on its first visit."""
  i = pl.program_id(1)

  @pl.when((i == 0) | (group_ref[i] != group_ref[jnp.maximum(i - 1, 0)]))
  def _():
    for ref in out_refs:
      ref[...] = jnp.zeros_like(ref)
