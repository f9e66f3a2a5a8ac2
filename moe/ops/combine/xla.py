"""combine as K gathers, and gathers again in backward: no scatter-add either way."""

import functools

import jax
import jax.numpy as jnp

from moe.ops.dispatch.xla import take_rows
from moe.ops.dispatch_plan import DispatchPlan


@jax.custom_vjp
def combine(rows_RD: jax.Array, gates_TK: jax.Array, plan: DispatchPlan) -> jax.Array:
  gated = (
    gates_TK[:, k, None] * _rows_of_choice(rows_RD, plan, k) for k in range(gates_TK.shape[1])
  )
  return functools.reduce(jnp.add, gated)


def gates_by_row(gates_TK: jax.Array, plan: DispatchPlan) -> jax.Array:
  """gates_R: the gate of every row. A permutation, hence a scatter without collisions."""
  flat = jnp.zeros(gates_TK.size, gates_TK.dtype).at[plan.row_TK.reshape(-1)]
  return flat.set(gates_TK.reshape(-1), unique_indices=True, mode='promise_in_bounds')


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
