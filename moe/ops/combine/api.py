"""combine: each token's rows, weighted by its gates and summed."""

import jax

from moe.ops.dispatch_plan import DispatchPlan
from moe.ops.implementation import module


def combine(
  rows_RD: jax.Array, gates_TK: jax.Array, plan: DispatchPlan, *, implementation: str = 'auto'
) -> jax.Array:
  """tokens_TD float32 with tokens[t] = Σ_k gates[t, k] · rows[plan.row_TK[t, k]]. Differentiable in rows and gates."""
  return module('combine', implementation).combine(rows_RD, gates_TK, plan)
