"""dispatch → grouped matmuls → combine: the routed FFN made of three ops,
in any of their implementations.

It is the plain XLA on platforms with a good grouped matmul (xla.py), and the baseline for the fused
kernels of pallas_tpu.py and pallas_gpu.py. Differentiable as the three ops are.
"""

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
  implementation: str = 'xla',
) -> jax.Array:
  """As `moe.ops.routed_ffn.routed_ffn`; `implementation` is that of each of the three ops."""
  gate_EDF, up_EDF, down_EFD = (w.astype(dtype) for w in weights)

  def product(rows, w):
    return grouped_matmul(rows, w, plan.group_sizes_E, implementation=implementation).astype(dtype)

  rows_RD = dispatch(tokens_TD.astype(dtype), plan, implementation=implementation)
  hidden_RF = activation(product(rows_RD, gate_EDF), product(rows_RD, up_EDF))
  output_RD = product(hidden_RF, down_EFD)
  return combine(output_RD, gates_TK, plan, implementation=implementation).astype(dtype)
