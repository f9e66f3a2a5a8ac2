"""dispatch as a gather, forward and backward: the transpose sums K gathered rows,
since scatter-adds are slow.
"""

import jax

from moe.ops.dispatch_plan import DispatchPlan
from moe.ops.rows import sum_rows, take_rows


@jax.custom_vjp
def dispatch(tokens_TD: jax.Array, plan: DispatchPlan) -> jax.Array:
  return take_rows(tokens_TD, plan.token_R)


def _forward(tokens_TD, plan):
  return dispatch(tokens_TD, plan), plan


def _backward(plan, d_rows_RD):
  return sum_rows(d_rows_RD, plan.row_TK).astype(d_rows_RD.dtype), None


dispatch.defvjp(_forward, _backward)
