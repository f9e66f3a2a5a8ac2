"""Every expert on every token, weighted by a gate that is zero where the expert was
not chosen: O(E) in FLOPs.
"""

import jax
import jax.numpy as jnp
from jax import lax

from moe.ops.dispatch_plan import DispatchPlan
from moe.ops.matmul import linear
from moe.ops.quantized import Quantized, as_numbers
from moe.ops.routed_ffn.types import ExpertWeights
from moe.ops.swiglu import swiglu


def routed_ffn(
  tokens_TD: jax.Array,
  gates_TK: jax.Array,
  plan: DispatchPlan,
  weights: ExpertWeights,
  dtype: jnp.dtype,
) -> jax.Array:
  num_tokens, num_experts = tokens_TD.shape[0], weights.gate_EDF.shape[0]
  token_T1 = jnp.arange(num_tokens)[:, None]
  gates_TE = jnp.zeros((num_tokens, num_experts)).at[token_T1, plan.experts_TK].set(gates_TK)

  weights = (as_numbers(w, dtype) if isinstance(w, Quantized) else w for w in weights)

  @jax.checkpoint
  def add_expert(total_TD, expert):
    gates_T, gate_DF, up_DF, down_FD = expert
    hidden_TF = swiglu(linear(tokens_TD, gate_DF, dtype), linear(tokens_TD, up_DF, dtype))
    output_TD = linear(hidden_TF.astype(dtype), down_FD, dtype)
    return total_TD + gates_T[:, None] * output_TD.astype(jnp.float32), None

  total_TD = jnp.zeros(tokens_TD.shape, jnp.float32)
  return lax.scan(add_expert, total_TD, (gates_TE.T, *weights))[0].astype(dtype)
