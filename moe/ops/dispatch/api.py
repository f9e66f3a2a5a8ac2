"""dispatch: a copy of every token for each expert it chose, sorted by expert."""

import jax

from moe.ops.dispatch import reference, xla
from moe.ops.implementation import Implementation, choose
from moe.ops.plan import DispatchPlan


def dispatch(tokens_TD: jax.Array, plan: DispatchPlan, *, implementation: str = 'auto') -> jax.Array:
  """rows_RD with rows[r] = tokens[plan.token_R[r]], in the tokens' type. Differentiable in the tokens."""
  chosen = choose('dispatch', implementation, jax.default_backend())
  return {Implementation.REFERENCE: reference, Implementation.XLA: xla}[chosen].dispatch(tokens_TD, plan)
