"""DispatchPlan: where every (token, expert) assignment lies once rows are sorted by expert.

T tokens, K experts a token, E experts, R = T·K rows.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


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
  chosen_TE = (experts_TK[:, :, None] == jnp.arange(num_experts)[None, None]).any(axis=1).astype(jnp.int32)
  group_sizes_E = chosen_TE.sum(axis=0)
  group_offsets_E = jnp.cumsum(group_sizes_E) - group_sizes_E
  # An assignment's row: its expert's first row plus the earlier tokens that chose the same expert.
  row_TE = group_offsets_E[None] + jnp.cumsum(chosen_TE, axis=0) - chosen_TE
  row_TK = jnp.take_along_axis(row_TE, experts_TK, axis=1)
  token_TK = jnp.broadcast_to(jnp.arange(num_tokens, dtype=jnp.int32)[:, None], row_TK.shape)
  token_R = (
    jnp.zeros(num_tokens * experts_per_token, jnp.int32)
    .at[row_TK.reshape(-1)]
    .set(token_TK.reshape(-1), unique_indices=True, mode='promise_in_bounds')
  )
  return DispatchPlan(experts_TK, row_TK, token_R, group_sizes_E, group_offsets_E)
