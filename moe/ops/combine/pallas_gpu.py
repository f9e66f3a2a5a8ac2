"""combine as Triton kernels: forward gathers a token's K rows, backward reads a token's cotangent once for them all."""

import jax
import jax.numpy as jnp

from moe.ops.dispatch_plan import DispatchPlan
from moe.ops.gpu.rows import gated_rows_gradients, sum_rows


@jax.custom_vjp
def combine(rows_RD: jax.Array, gates_TK: jax.Array, plan: DispatchPlan) -> jax.Array:
  return sum_rows('combine', rows_RD, plan.row_TK, jnp.float32, gates_TK)


def _forward(rows_RD, gates_TK, plan):
  return combine(rows_RD, gates_TK, plan), (rows_RD, gates_TK, plan)


def _backward(residuals, d_tokens_TD):
  rows_RD, gates_TK, plan = residuals
  d_rows_RD, d_gates_TK = gated_rows_gradients(
    'combine_backward', d_tokens_TD, rows_RD, gates_TK, plan.row_TK
  )
  return d_rows_RD, d_gates_TK.astype(gates_TK.dtype), None


combine.defvjp(_forward, _backward)
