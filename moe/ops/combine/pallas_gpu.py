"""combine as Triton kernels: forward gathers a token's K rows,
backward reads a token's cotangent once for them all.

They serve routed_ffn/grouped.py where it is asked for pallas_gpu, benchmarks and launch.aot.
A run with ops.implementation=pallas_gpu does not use them:
routed_ffn/pallas_gpu.py fuses these moves into its products.
"""

import jax
import jax.numpy as jnp

from moe.ops.dispatch_plan import DispatchPlan
from moe.ops.gpu.row_moves import gated_rows_gradients, sum_rows
from moe.ops.kernels import Kernel

_COMBINE = Kernel('combine')
_GRADIENTS = Kernel('combine_backward', backward=True)
KERNELS = (_COMBINE, _GRADIENTS)


@jax.custom_vjp
def combine(rows_RD: jax.Array, gates_TK: jax.Array, plan: DispatchPlan) -> jax.Array:
  return sum_rows(_COMBINE.name, rows_RD, plan.row_TK, jnp.float32, gates_TK)


def _forward(rows_RD, gates_TK, plan):
  return combine(rows_RD, gates_TK, plan), (rows_RD, gates_TK, plan)


def _backward(residuals, d_tokens_TD):
  rows_RD, gates_TK, plan = residuals
  d_rows_RD, d_gates_TK = gated_rows_gradients(
    _GRADIENTS.name, d_tokens_TD, rows_RD, gates_TK, plan.row_TK
  )
  return d_rows_RD, d_gates_TK.astype(gates_TK.dtype), None


combine.defvjp(_forward, _backward)
