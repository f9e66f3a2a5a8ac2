"""dispatch as Triton kernels: each token is read once and written K times;
backward sums its K rows in float32.

They serve routed_ffn/grouped.py where it is asked for pallas_gpu, benchmarks and launch.aot.
A run with ops.implementation=pallas_gpu does not use them:
routed_ffn/pallas_gpu.py fuses these moves into its products.
"""

import jax

from moe.ops.dispatch_plan import DispatchPlan
from moe.ops.gpu.row_moves import copy_to_rows, sum_rows
from moe.ops.kernels import Kernel

_DISPATCH = Kernel('dispatch')
_D_TOKENS = Kernel('dispatch_backward', backward=True)
KERNELS = (_DISPATCH, _D_TOKENS)


@jax.custom_vjp
def dispatch(tokens_TD: jax.Array, plan: DispatchPlan) -> jax.Array:
  return copy_to_rows(_DISPATCH.name, tokens_TD, plan.row_TK)


def _forward(tokens_TD, plan):
  return dispatch(tokens_TD, plan), plan


def _backward(plan, d_rows_RD):
  return sum_rows(_D_TOKENS.name, d_rows_RD, plan.row_TK, d_rows_RD.dtype), None


dispatch.defvjp(_forward, _backward)
