"""dispatch as one indexing expression; autodiff gives its transpose (a scatter-add)."""

import jax

from moe.ops.dispatch_plan import DispatchPlan


def dispatch(tokens_TD: jax.Array, plan: DispatchPlan) -> jax.Array:
  return tokens_TD[plan.token_R]
