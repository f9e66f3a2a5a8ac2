"""dispatch: a copy of every token for each expert it chose, sorted by expert."""

import jax

from moe.ops.dispatch_plan import DispatchPlan
from moe.ops.implementation import module


def dispatch(
  tokens_TD: jax.Array, plan: DispatchPlan, *, implementation: str = 'auto'
) -> jax.Array:
  """rows_RD with rows[r] = tokens[plan.token_R[r]], in the tokens' type. Differentiable in the tokens."""
  return module('dispatch', implementation).dispatch(tokens_TD, plan)
