"""dispatch as Triton kernels: each token is read once and written K times; backward sums its K rows in float32."""

import jax

from moe.ops.dispatch_plan import DispatchPlan
from moe.ops.gpu.rows import copy_to_rows, sum_rows


@jax.custom_vjp
def dispatch(tokens_TD: jax.Array, plan: DispatchPlan) -> jax.Array:
  return copy_to_rows('dispatch', tokens_TD, plan.row_TK)


def _forward(tokens_TD, plan):
  return dispatch(tokens_TD, plan), plan


def _backward(plan, d_rows_RD):
  return sum_rows('dispatch_backward', d_rows_RD, plan.row_TK, d_rows_RD.dtype), None


dispatch.defvjp(_forward, _backward)
