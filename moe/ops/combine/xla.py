"""combine as K gathers, and gathers again in backward: no scatter-add either way."""

import functools

import jax
import jax.numpy as jnp

from moe.ops.dispatch_plan import DispatchPlan
from moe.ops.rows import gates_by_row, take_rows


@jax.custom_vjp
def combine(rows_RD: jax.Array, gates_TK: jax.Array, plan: DispatchPlan) -> jax.Array:
  gated = (
    gates_TK[:, k, None] * _rows_of_choice(rows_RD, plan, k) for k in range(gates_TK.shape[1])
  )
  return functools.reduce(jnp.add, gated)


def _rows_of_choice(rows_RD, plan, k):
  return take_rows(rows_RD, plan.row_TK[:, k]).astype(jnp.float32)


def _forward(rows_RD, gates_TK, plan):
  return combine(rows_RD, gates_TK, plan), (rows_RD, gates_TK, plan)


def _backward(residuals, d_tokens_TD):
  rows_RD, gates_TK, plan = residuals
  d_gathered_RD = take_rows(d_tokens_TD, plan.token_R)
  d_rows_RD = (gates_by_row(gates_TK, plan)[:, None] * d_gathered_RD).astype(rows_RD.dtype)
  d_gates = (
    (d_tokens_TD * _rows_of_choice(rows_RD, plan, k)).sum(axis=-1) for k in range(gates_TK.shape[1])
  )
  return d_rows_RD, jnp.stack(list(d_gates), axis=1).astype(gates_TK.dtype), None


combine.defvjp(_forward, _backward)
