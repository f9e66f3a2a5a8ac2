"""combine: each token's rows, weighted by its gates and summed."""

import jax

from moe.ops.combine import reference, xla
from moe.ops.implementation import Implementation, choose
from moe.ops.plan import DispatchPlan


def combine(rows_RD: jax.Array, gates_TK: jax.Array, plan: DispatchPlan, *, implementation: str = 'auto') -> jax.Array:
  """tokens_TD float32 with tokens[t] = Σ_k gates[t, k] · rows[plan.row_TK[t, k]]. Differentiable in rows and gates."""
  chosen = choose('combine', implementation, jax.default_backend())
  return {Implementation.REFERENCE: reference, Implementation.XLA: xla}[chosen].combine(rows_RD, gates_TK, plan)
