"""The two grouped products that all others are made of:
rows × a matrix per group, and rowsᵀ × rows per group.

R rows sorted by group, E groups, X (depth) summed over, Y columns of the result. Programs of one
group are neighbours, so that its matrix, or its rows,
are read from HBM once and from L2 afterwards.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from moe.ops.dispatch_plan import make_tiles
from moe.ops.gpu.kernels import (
  Span,
  call,
  dot,
  load,
  out_of_registers,
  power_of_two,
  span,
  stages,
  store,
  tile_size,
)
from moe.ops.gpu.matrices import rows_of, scaled, step_of, tiles
from moe.ops.quantized import Matrix

# With at most _FEW_ROWS rows in a tile, reading the matrices takes the time. Tiles are then narrow,
# so that all of the chip's cores have programs, but no narrower than a cache line.
_FEW_ROWS, _COLUMNS_OF_FEW = 16, 64


class Block(NamedTuple):
  """What the epilogue of `rows_times_matrices` gets."""

  products: list[jax.Array]  # float32
  rows: Span
  columns: Span
  column_tile: jax.Array


class _Limits(NamedTuple):
  """Largest tiles of an operand type. float32 runs on FMA units,
  whose operands are in registers.
  """

  rows: int
  columns: int  # of all accumulators together
  depth: int
  stages: int


def _limits(dtype):
  return _Limits(128, 256, 64, 4) if dtype.itemsize == 2 else _Limits(64, 64, 16, 2)


def row_tile(num_rows: int, num_groups: int, dtype: jnp.dtype) -> int:
  """Rows of a tile: no more than the average group fills."""
  return power_of_two(pl.cdiv(num_rows, num_groups), _limits(dtype).rows)


def column_tile(width: int, share: int, dtype: jnp.dtype) -> int:
  """Columns of a tile that may take 1 / `share` of the accumulators' registers."""
  return tile_size(width, _limits(dtype).columns // share)


def _share(share, products):
  """The `share` for `column_tile`. Where operands need registers, too, two products at a time spill
  unless they leave half of them.
  """
  return max(share, 2 * products) if products > 1 and out_of_registers() else share


def rows_times_matrices(
  name: str,
  rows: Sequence[jax.Array],
  matrices: Sequence[Matrix],
  group_sizes_E: jax.Array,
  outputs: Sequence[jax.ShapeDtypeStruct],
  epilogue: Callable,
  *,
  transposed: bool = False,
  tokens_R: jax.Array | None = None,
  extras: Sequence[jax.Array] = (),
  share: int = 1,
  first: jax.Array | int = 0,
) -> list[jax.Array]:
  """Multiplies one array of rows with each of the matrices; or, with as many arrays of rows as
  matrices, sums the pairs' products.

  Args:
    name: of the kernel.
    rows: each (R, X), or (T, X) if gathered by `tokens_R`. R > 0.
    matrices: each (E, X, Y) or, if `transposed`, (E, Y, X) and not quantized; they may have more
      groups, see `first`.
    outputs: what `epilogue(block, extra_refs, output_refs)` writes.
    tokens_R: int32: row r is rows[tokens_R[r]].
    extras: more operands for the epilogue.
    share: an accumulator has 1 / share of the registers;
      the rest is the epilogue's, or the other accumulators'.
    first: index of the first group's matrix.
  """
  dtype, num_groups = rows[0].dtype, group_sizes_E.shape[0]
  depth, width = matrices[0].shape[1:][:: -1 if transposed else 1]
  num_rows = outputs[0].shape[0]
  accumulators = len(matrices) if len(rows) == 1 else 1
  tile = row_tile(num_rows, num_groups, dtype)
  columns = column_tile(width, _share(share, len(matrices)), dtype)
  if tile <= _FEW_ROWS:
    columns = min(columns, _COLUMNS_OF_FEW)
  limits = _limits(dtype)
  step, column_tiles = step_of(matrices[0], depth, limits.depth), pl.cdiv(width, columns)
  group_U, start_U, stop_U, _ = make_tiles(group_sizes_E, num_rows, tile, aligned=False)
  gathers = [] if tokens_R is None else [tokens_R]
  arrays, structure = jax.tree.flatten(list(matrices))

  def kernel(program, group_U, start_U, stop_U, *refs):
    row_refs, matrix_refs, token_refs, extra_refs, output_refs = _split(
      refs, len(rows), len(arrays), len(gathers), len(extras), len(outputs)
    )
    matrix_refs = jax.tree.unflatten(structure, matrix_refs)
    n, j = program // column_tiles, program % column_tiles
    group, start, stop = group_U[n], start_U[n], stop_U[n]

    @pl.when(start < stop)
    def _():
      own = start + jnp.arange(tile, dtype=jnp.int32)
      # Past the tile's end its last row is read again, and not written:
      # masks in the loop would cost more.
      readable = Span(jnp.minimum(own, stop - 1))
      source = Span(load(token_refs[0], readable)) if gathers else readable
      across = span(j * columns, columns, width)

      def add(i, sums):
        parts = rows_of(matrix_refs[0], i, step, depth)
        a = [[load(ref, source, part) for part in parts] for ref in row_refs]
        b = [tiles(ref, i, step, depth, across, group, dtype, transposed) for ref in matrix_refs]
        products = [
          [dot(*pair, 1, int(transposed)) for pair in zip(a[p % len(a)], b[p])]
          for p in range(len(b))
        ]
        if accumulators > 1:
          return [sum(of_matrix, s) for s, of_matrix in zip(sums, products)]
        return [sum(itertools.chain(*products), sums[0])]

      zeros = [jnp.zeros((tile, columns), jnp.float32)] * accumulators
      sums = lax.fori_loop(0, pl.cdiv(depth, step), add, zeros)
      sums = [scaled(ref, total, across, group) for ref, total in zip(matrix_refs, sums)]
      epilogue(Block(sums, Span(own, own < stop), across, j), extra_refs, output_refs)

  balanced = min(num_groups, num_rows) * pl.cdiv(pl.cdiv(num_rows, num_groups), tile)
  return call(
    name,
    kernel,
    group_U.shape[0] * column_tiles,
    outputs,
    group_U + first,
    start_U,
    stop_U,
    *rows,
    *arrays,
    *gathers,
    *extras,
    num_warps=8 if tile * columns * accumulators >= 128 * 64 else 4,
    num_stages=stages(
      step * (tile * len(rows) + columns * len(matrices)) * dtype.itemsize, limits.stages
    ),
    flops=2
    * balanced
    * tile
    * column_tiles
    * columns
    * pl.cdiv(depth, step)
    * step
    * len(matrices),
  )


def write(block, extra_refs, output_refs):
  """The epilogue of a plain product."""
  store(output_refs[0], block.products[0], block.rows, block.columns)


def rows_times_rows(
  name: str,
  left: jax.Array,
  rights: Sequence[jax.Array],
  group_sizes_E: jax.Array,
  dtypes: Sequence[jnp.dtype],
  *,
  left_tokens_R: jax.Array | None = None,
  right_tokens_R: jax.Array | None = None,
) -> list[jax.Array]:
  """Each group's left rowsᵀ times its right rows, for each of the rights:
  (E, X, Y) in the given type, exact zeros for an empty group.

  Args:
    left: (R, X), or (T, X) if gathered by `left_tokens_R`.
    rights: each (R, Y), or (T, Y) if gathered by `right_tokens_R`. All float32 or all bfloat16.
  """
  dtype, num_groups, (height, width) = (
    left.dtype,
    group_sizes_E.shape[0],
    (left.shape[1], rights[0].shape[1]),
  )
  limits = _limits(dtype)
  share = _share(len(rights), len(rights))
  high, wide = tile_size(height, limits.rows), column_tile(width, share, dtype)
  high_tiles, wide_tiles = pl.cdiv(height, high), pl.cdiv(width, wide)
  num_rows = max(x.shape[0] for x in (left_tokens_R, right_tokens_R, rights[0]) if x is not None)
  step = power_of_two(pl.cdiv(num_rows, num_groups), limits.depth)
  ends_E = jnp.cumsum(group_sizes_E, dtype=jnp.int32)
  gathers = [tokens_R for tokens_R in (left_tokens_R, right_tokens_R) if tokens_R is not None]
  outputs = [jax.ShapeDtypeStruct((num_groups, height, width), d) for d in dtypes]

  def kernel(program, size_E, end_E, left_ref, *refs):
    right_refs, token_refs, output_refs = _split(refs, len(rights), len(gathers), len(outputs))
    tokens = iter(token_refs)
    left_tokens = None if left_tokens_R is None else next(tokens)
    right_tokens = None if right_tokens_R is None else next(tokens)
    group, i, j = (
      program // (high_tiles * wide_tiles),
      program // wide_tiles % high_tiles,
      program % wide_tiles,
    )
    stop = end_E[group]
    start = stop - size_E[group]
    down, across = span(i * high, high, height), span(j * wide, wide, width)

    def add(k, sums):
      own = start + k * step + jnp.arange(step, dtype=jnp.int32)
      # Past the group's end its last row is read again: as zero on the left,
      # finite (if that row is) on the right.
      readable = Span(jnp.minimum(own, stop - 1))
      source = lambda token_ref: readable if token_ref is None else Span(load(token_ref, readable))
      a = load(left_ref, Span(source(left_tokens).index, own < stop), down)
      return [
        s + dot(a, load(ref, source(right_tokens), across), 0, 0)
        for s, ref in zip(sums, right_refs)
      ]

    zeros = [jnp.zeros((high, wide), jnp.float32)] * len(rights)
    for ref, result in zip(output_refs, lax.fori_loop(0, pl.cdiv(stop - start, step), add, zeros)):
      store(ref, result, down, across, leading=(group,))

  balanced = num_groups * pl.cdiv(pl.cdiv(num_rows, num_groups), step) * step
  return call(
    name,
    kernel,
    num_groups * high_tiles * wide_tiles,
    outputs,
    group_sizes_E,
    ends_E,
    left,
    *rights,
    *gathers,
    num_warps=8 if high * wide * len(rights) >= 128 * 128 else 4,
    num_stages=stages(step * (high + wide * len(rights)) * dtype.itemsize, limits.stages),
    flops=2 * balanced * high_tiles * high * wide_tiles * wide * len(rights),
  )


def _split(refs, *lengths):
  parts, rest = [], list(refs)
  for length in lengths:
    parts.append(rest[:length])
    rest = rest[length:]
  return parts
