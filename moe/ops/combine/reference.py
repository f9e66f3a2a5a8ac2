"""combine as a scatter-add of gated rows."""

import jax
import jax.numpy as jnp

from moe.ops.dispatch_plan import DispatchPlan


def combine(rows_RD: jax.Array, gates_TK: jax.Array, plan: DispatchPlan) -> jax.Array:
  gates_R = jnp.zeros(rows_RD.shape[0], gates_TK.dtype).at[plan.row_TK].set(gates_TK)
  tokens_TD = jnp.zeros((gates_TK.shape[0], rows_RD.shape[1]), jnp.float32)
  return tokens_TD.at[plan.token_R].add(gates_R[:, None] * rows_RD.astype(jnp.float32))
