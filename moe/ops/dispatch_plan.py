"""DispatchPlan: where every (token, expert) assignment lies once rows are sorted by expert.

T tokens, K experts a token, E experts, R = T·K rows, U tiles.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

_NAME = 'dispatch_plan'
# A rematerialisation policy that saves the plan, a few integers per assignment, so that backward
# follows exactly the routing of forward.
SAVE_PLAN = jax.checkpoint_policies.save_only_these_names(_NAME)


class DispatchPlan(NamedTuple):
  """A permutation of the T·K assignments that sorts them by expert, stable in the token order."""

  experts_TK: jax.Array  # int32, the assignments it was made from
  row_TK: jax.Array  # int32: row of assignment (t, k)
  token_R: jax.Array  # int32: token of every row
  group_sizes_E: jax.Array  # int32: rows of every expert
  group_offsets_E: jax.Array  # int32: first row of every expert


def make_plan(experts_TK: jax.Array, num_experts: int) -> DispatchPlan:
  """Counting sort of the assignments, O(T·E) additions and no comparison sort.

  Args:
    experts_TK: integer expert of every assignment, distinct within a token, in [0, num_experts).
    num_experts: E.
  """
  num_tokens, experts_per_token = experts_TK.shape
  experts_TK = experts_TK.astype(jnp.int32)
  row_TK, group_sizes_E, group_offsets_E = sort_assignments(experts_TK, num_experts)
  token_TK = jnp.broadcast_to(jnp.arange(num_tokens, dtype=jnp.int32)[:, None], row_TK.shape)
  token_R = (
    jnp.zeros(num_tokens * experts_per_token, jnp.int32)
    .at[row_TK.reshape(-1)]
    .set(token_TK.reshape(-1), unique_indices=True, mode='promise_in_bounds')
  )
  return DispatchPlan(experts_TK, row_TK, token_R, group_sizes_E, group_offsets_E)


def saveable(tree: Any) -> Any:
  """The arrays of a plan, or those that one is made from, tagged for `SAVE_PLAN` to save."""
  return jax.tree.map(lambda x: checkpoint_name(x, _NAME), tree)


def sort_assignments(
  experts_TK: jax.Array, num_experts: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """(row_TK, group_sizes_E, group_offsets_E). Expert number `num_experts` means none: such an
  assignment gets no row, and its row_TK is meaningless.
  """
  chosen_TE = (
    (experts_TK[:, :, None] == jnp.arange(num_experts)[None, None]).any(axis=1).astype(jnp.int32)
  )
  group_sizes_E = chosen_TE.sum(axis=0)
  group_offsets_E = jnp.cumsum(group_sizes_E) - group_sizes_E
  # An assignment's row: its expert's first row plus the earlier tokens that chose the same expert.
  row_TE = group_offsets_E[None] + jnp.cumsum(chosen_TE, axis=0) - chosen_TE
  return (
    jnp.take_along_axis(row_TE, experts_TK, axis=1, mode='clip'),
    group_sizes_E,
    group_offsets_E,
  )


class Tiles(NamedTuple):
  """Runs of rows of one group each, in the order of the rows; a kernel's grid walks over them.

  U = ⌈R / rows_per_tile⌉ + min(E, R) bounds their number whatever the routing; if empty groups are
  visited, ⌈R / rows_per_tile⌉ + E does. Tiles from `count` on are idle (empty, at R).
  """

  group_U: jax.Array  # int32
  start_U: jax.Array  # int32: first row
  stop_U: jax.Array  # int32: one past the last row
  count: jax.Array  # int32 scalar


def make_tiles(
  group_sizes_E: jax.Array,
  num_rows: int,
  rows_per_tile: int,
  *,
  aligned: bool,
  visit_empty: bool = False,
) -> Tiles:
  """Cuts every group into tiles of at most `rows_per_tile` rows.

  Args:
    group_sizes_E: int32, sum to `num_rows` (R) or less; rows past the last group are in no tile.
    aligned: cut at multiples of `rows_per_tile` (a tile then lies in block start // rows_per_tile,
      which groups may share); otherwise at multiples counted from the group's first row.
    visit_empty: an empty group gets one empty tile, placed at its offset.
  """
  num_groups = group_sizes_E.shape[0]
  end_E = jnp.cumsum(group_sizes_E)
  start_E = end_E - group_sizes_E
  # Where each group's first tile would begin.
  origin_E = start_E // rows_per_tile * rows_per_tile if aligned else start_E
  tiles_E = -(-(end_E - origin_E) // rows_per_tile)
  tiles_E = jnp.where(group_sizes_E == 0, int(visit_empty), tiles_E)
  last_tile_E = jnp.cumsum(tiles_E)
  visited = num_groups if visit_empty else min(num_groups, num_rows)
  tile_U = jnp.arange(-(-num_rows // rows_per_tile) + visited, dtype=jnp.int32)
  group_U = jnp.searchsorted(last_tile_E, tile_U, side='right', method='compare_all').astype(
    jnp.int32
  )
  idle_U = group_U == num_groups
  group_U = jnp.minimum(group_U, num_groups - 1)
  begin_U = origin_E[group_U] + (tile_U - (last_tile_E - tiles_E)[group_U]) * rows_per_tile
  start_U = jnp.where(idle_U, num_rows, jnp.maximum(begin_U, start_E[group_U]))
  stop_U = jnp.where(idle_U, num_rows, jnp.minimum(begin_U + rows_per_tile, end_E[group_U]))
  return Tiles(
    group_U, start_U.astype(jnp.int32), stop_U.astype(jnp.int32), last_tile_E[-1].astype(jnp.int32)
  )
