"""dispatch → grouped matmuls → combine: the routed FFN of platforms with a good grouped matmul."""

import jax
import jax.numpy as jnp

from moe.ops.combine import combine
from moe.ops.dispatch import dispatch
from moe.ops.dispatch_plan import DispatchPlan
from moe.ops.grouped_matmul import grouped_matmul
from moe.ops.routed_ffn.types import ExpertWeights
from moe.ops.swiglu import activation


def routed_ffn(
  tokens_TD: jax.Array,
  gates_TK: jax.Array,
  plan: DispatchPlan,
  weights: ExpertWeights,
  dtype: jnp.dtype,
) -> jax.Array:
  gate_EDF, up_EDF, down_EFD = (w.astype(dtype) for w in weights)
  grouped = lambda rows, w: grouped_matmul(
    rows, w, plan.group_sizes_E, implementation='xla'
  ).astype(dtype)
  rows_RD = dispatch(tokens_TD.astype(dtype), plan, implementation='xla')
  hidden_RF = activation(grouped(rows_RD, gate_EDF), grouped(rows_RD, up_EDF))
  output_RD = grouped(hidden_RF, down_EFD)
  return combine(output_RD, gates_TK, plan, implementation='xla').astype(dtype)
