"""The routed FFN of rows that differ in how many experts they have, by any implementation of it.

A row is copied once for each of its experts. The copies are sorted by expert, and run as rows with
one expert each.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from moe.ops.dispatch_plan import DispatchPlan, sort_assignments
from moe.ops.moves import Moves, collect, spread
from moe.ops.routed_ffn.types import ExpertWeights


def routed_ffn_of_some(
  x_AD: jax.Array,
  gates_AK: jax.Array,
  experts_AK: jax.Array,
  weights: ExpertWeights,
  room: int,
  run: Callable,
) -> jax.Array:
  """Σ_k gate · FFN_expert(row), in the rows' type, over those of the K choices that are experts.

  Differentiable in rows, gates and weights.

  Args:
    x_AD: A rows.
    gates_AK: float32.
    experts_AK: int32, distinct within a row except for G, which means no expert and costs nothing.
    weights: of G experts.
    room: R, at least the number of choices that are experts.
    run: `routed_ffn`, with its options.
  """
  here = weights.gate_EDF.shape[0]
  row_AK, sizes_G, offsets_G = sort_assignments(experts_AK, here)
  row_AK = jnp.where(experts_AK < here, row_AK, room)
  choices = row_AK.shape[1]
  flat = jnp.arange(row_AK.size, dtype=jnp.int32)
  flat_R = jnp.full(room, row_AK.size, jnp.int32).at[row_AK.reshape(-1)].set(flat, mode='drop')
  assignments = Moves(flat_R // choices, row_AK)
  gates_R1 = spread(gates_AK.reshape(-1, 1), Moves(flat_R, row_AK.reshape(-1, 1)))
  # Already sorted, one expert a row. Rows past the last group have no expert: nothing reads them.
  row_R = jnp.arange(room, dtype=jnp.int32)
  expert_R = jnp.take(experts_AK.reshape(-1), flat_R, mode='fill', fill_value=here - 1)
  plan = DispatchPlan(expert_R[:, None], row_R[:, None], row_R, sizes_G, offsets_G)
  return collect(run(spread(x_AD, assignments), gates_R1, plan, weights), assignments).astype(
    x_AD.dtype
  )
