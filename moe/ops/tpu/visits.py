"""A grid over the tiles of a plan: row blocks in order,
each visited once by every group that has rows in it.

E groups, R rows, U visits. Groups share blocks rather than being padded to them: a visit computes
the whole block and stores it from its group's first row on; the rows after its group's last one are
stored again by the next visits.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from moe.ops.dispatch_plan import Tiles, make_tiles
from moe.ops.implementation import interpret
from moe.ops.quantized import Matrix

# Rows of a block. A block shared by two groups is computed twice,
# so it should be small next to a group; an MXU wants 128.
LEAST_ROWS, MOST_ROWS, VISITS_PER_GROUP = 128, 512, 4
SUBLANES = 16  # of a bfloat16 tile
# What a kernel's blocks may take in VMEM, and what the compiler may use in all:
# v5p has 64 MiB, v5e and v6e 128.
BLOCK_BYTES, VMEM_LIMIT = 44 << 20, 60 << 20


class Visits(NamedTuple):
  tiles: Tiles
  rows: int  # of a block
  blocks: int  # ⌈R / rows⌉
  groups: int  # E

  def block(self, start: jax.Array) -> jax.Array:
    """The block of a tile; an empty tile past the last row belongs to the last block."""
    # `//` asks for the device, absent in AOT.
    return jnp.minimum(lax.div(start, self.rows), self.blocks - 1)

  def read_bytes(self, weights_EXY: Matrix) -> int:
    """An upper bound on the bytes of the matrices of groups that have rows."""
    read = min(self.groups, self.tiles.group_U.shape[0])
    return weights_EXY.nbytes // weights_EXY.shape[0] * read

  def row_spec(self, width: int, *, tiled: bool) -> pl.BlockSpec:
    """Selects the visit's block of rows_RX, with all columns or (`tiled`) the outer tile's."""
    return pl.BlockSpec(
      (self.rows, width), lambda o, i, group, start, stop: (self.block(start[i]), o * tiled)
    )

  def group_spec(self, height: int, width: int, *, tiled: int | None) -> pl.BlockSpec:
    """Selects the matrix of the visit's group from weights_EXY,
    whole or cut into outer tiles along dimension `tiled`.
    """
    index = lambda o, i, group, start, stop: (group[i], o * (tiled == 0), o * (tiled == 1))
    return pl.BlockSpec((None, height, width), index)

  def matrix_specs(self, weights_EXY: Matrix, tile: int) -> list[pl.BlockSpec]:
    """A `group_spec` for each array of the visit's matrix, cut into tiles of columns."""
    arrays = jax.tree.leaves(weights_EXY)
    return [self.group_spec(array.shape[1], tile, tiled=1) for array in arrays]

  def lane_spec(self, *, ahead: int = 0, memory_space=None) -> pl.BlockSpec:
    """Selects the visit's block of numbers that `by_block` laid out, or the block `ahead` of it."""
    index = lambda o, i, group, start, stop: (
      jnp.minimum(self.block(start[i]) + ahead, self.blocks - 1),
      0,
      0,
    )
    return pl.BlockSpec((1, 1, self.rows), index, memory_space=memory_space)


def rows_per_block(num_rows: int, num_groups: int, row_bytes: int) -> int:
  """Rows of a block: 128, or up to 512 where groups are so large that four blocks fit;
  fewer only where there are fewer rows.

  row_bytes: of the widest row that a kernel holds whole. Four blocks of such rows, of two arrays
  and double-buffered, leave half of the room to the other blocks.
  """
  rows = MOST_ROWS
  crowded = lambda: (
    rows * VISITS_PER_GROUP * num_groups > num_rows or 4 * rows * row_bytes > BLOCK_BYTES // 2
  )
  while rows > LEAST_ROWS and crowded():
    rows //= 2
  return min(rows, -(-num_rows // SUBLANES) * SUBLANES)


def make_visits(
  group_sizes_E: jax.Array,
  num_rows: int,
  weights_EXY: Matrix,
  dtype: jnp.dtype,
  *,
  visit_empty: bool = False,
  first: jax.Array | int = 0,
) -> Visits:
  """The visits of num_rows > 0 rows, of X or Y columns in `dtype`. visit_empty: groups without rows
  get a visit, in which to write zeros. first: index of the first group's matrix among the weights.
  """
  row_bytes = max(weights_EXY.shape[1:]) * jnp.dtype(dtype).itemsize
  rows = rows_per_block(num_rows, group_sizes_E.shape[0], row_bytes)
  tiles = make_tiles(group_sizes_E, num_rows, rows, aligned=True, visit_empty=visit_empty)
  tiles = tiles._replace(group_U=tiles.group_U + first)
  return Visits(tiles, rows, -(-num_rows // rows), group_sizes_E.shape[0])


def balanced_count(num_rows: int, num_groups: int, rows: int) -> int:
  """How many visits there are if groups are as equal as they can be."""
  ends = np.cumsum(num_rows // num_groups + (np.arange(num_groups) < num_rows % num_groups))
  begins = np.concatenate([[0], ends[:-1]])
  return int(np.where(ends > begins, -(-ends // rows) - begins // rows, 0).sum())


def by_block(values_R: jax.Array, rows: int) -> jax.Array:
  """One number a row as (blocks, 1, rows), padded with zeros:
  a block of it then lies along the lanes, or in SMEM.
  """
  return jnp.pad(values_R, (0, -values_R.shape[0] % rows)).reshape(-1, 1, rows)


def visit_call(
  name: str,
  kernel: Callable,
  visits: Visits,
  *arrays: jax.Array,
  outer: int,
  in_specs: Sequence[pl.BlockSpec],
  out_specs,
  out_shape,
  flops: int,
  bytes_accessed: int,
  scratch: Sequence = (),
):
  """pallas_call over (outer tiles, visits). The kernel's first three refs are the tiles' groups,
  starts and stops.
  """
  return pl.pallas_call(
    kernel,
    name=name,
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=3,
      grid=(outer, visits.tiles.count),
      in_specs=in_specs,
      out_specs=out_specs,
      scratch_shapes=scratch,
    ),
    out_shape=out_shape,
    compiler_params=compiler_params('parallel', 'arbitrary'),
    cost_estimate=pl.CostEstimate(flops=flops, transcendentals=0, bytes_accessed=bytes_accessed),
    interpret=interpret(),
  )(visits.tiles.group_U, visits.tiles.start_U, visits.tiles.stop_U, *arrays)


def compiler_params(*semantics: str) -> pltpu.CompilerParams:
  # Row indices come from a plan, a permutation, so they are in bounds:
  # without checks a row's DMA takes fewer instructions.
  return pltpu.CompilerParams(
    dimension_semantics=semantics, vmem_limit_bytes=VMEM_LIMIT, disable_bounds_checks=True
  )


def tiles_of(width: int, unit: int, fixed_bytes: int, bytes_per_column: int) -> tuple[int, int]:
  """(number, width) of equal tiles of `width`, a multiple of `unit`,
  that keep a kernel's blocks in BLOCK_BYTES.

  Where even tiles of one unit do not, returns these:
  the compiler may still find room for them, or says that there is none.
  """
  units = width // unit
  fitting = (
    n for n in range(1, units) if units % n == 0 and fit(width // n, fixed_bytes, bytes_per_column)
  )
  number = next(fitting, units)
  return number, width // number


def fit(tile: int, fixed_bytes: int, bytes_per_column: int) -> bool:
  """Whether blocks of that many columns leave a kernel within BLOCK_BYTES."""
  return fixed_bytes + tile * bytes_per_column <= BLOCK_BYTES


def ragged_tiles_of(width: int, fixed_bytes: int, bytes_per_column: int) -> tuple[int, int]:
  """As tiles_of, for any width: one tile of that width,
  or several of a multiple of 128, the last one overhanging.
  """
  if fit(width, fixed_bytes, bytes_per_column):
    return 1, width
  widest = max((BLOCK_BYTES - fixed_bytes) // bytes_per_column // 128, 1) * 128
  tile = pl.cdiv(pl.cdiv(width, pl.cdiv(width, widest)), 128) * 128
  return pl.cdiv(width, tile), tile


def split_bytes(height: int, dtype: jnp.dtype) -> int:
  """Bytes of the parts that a float32 product splits a column of weights into.
  bfloat16 is not split: 0.
  """
  return height * 4 * (dtype == jnp.float32)


def first_row(visits: Visits, start_ref) -> jax.Array:
  """The first row of the visit's own group, counted within its block. Call in a kernel."""
  i = pl.program_id(1)
  return start_ref[i] - visits.block(start_ref[i]) * visits.rows


def store(ref, value: jax.Array, first: jax.Array) -> None:
  """Writes the rows from `first` on; those before belong to groups visited earlier, and stay."""
  row = lax.broadcasted_iota(jnp.int32, value.shape, 0)
  ref[...] = jnp.where(row >= first, value.astype(ref.dtype), ref[...])


def column_of(lanes_1I: jax.Array) -> jax.Array:
  """(I, 1) from (1, I), in a kernel, for any I and exactly."""
  n = lanes_1I.shape[1]
  return jnp.where(_diagonal(n), jnp.broadcast_to(lanes_1I, (n, n)), 0).sum(axis=1, keepdims=True)


def lanes_of(column_I1: jax.Array) -> jax.Array:
  """(1, I) from (I, 1), likewise."""
  n = column_I1.shape[0]
  return jnp.where(_diagonal(n), jnp.broadcast_to(column_I1, (n, n)), 0).sum(axis=0, keepdims=True)


def _diagonal(n):
  return lax.broadcasted_iota(jnp.int32, (n, n), 0) == lax.broadcasted_iota(jnp.int32, (n, n), 1)
