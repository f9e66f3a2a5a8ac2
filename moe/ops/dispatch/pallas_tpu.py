"""dispatch as Mosaic kernels: forward fetches up to 128 rows a step by DMA;
the transpose fetches and sums each token's K rows.

They serve routed_ffn/grouped.py where it is asked for pallas_tpu, benchmarks and launch.aot.
A run with ops.implementation=pallas_tpu does not use them:
routed_ffn/pallas_tpu.py fuses these moves into its products.

Any T, D and K; D is padded up to a multiple of 256 (bfloat16) or 128 (float32).
"""

import jax

from moe.ops.dispatch_plan import DispatchPlan
from moe.ops.kernels import Kernel
from moe.ops.tpu.row_moves import copy_rows, sum_rows, to_words

_DISPATCH = Kernel('dispatch')
_D_TOKENS = Kernel('dispatch_d_tokens', backward=True)
KERNELS = (_DISPATCH, _D_TOKENS)


def dispatch(tokens_TD: jax.Array, plan: DispatchPlan) -> jax.Array:
  if tokens_TD.shape[0] == 0:
    return tokens_TD
  return _dispatch(tokens_TD, plan)


@jax.custom_vjp
def _dispatch(tokens_TD, plan):
  rows_RD = copy_rows(
    _DISPATCH.name, to_words(tokens_TD, tokens_TD.dtype), plan.token_R, tokens_TD.dtype
  )
  return rows_RD[:, : tokens_TD.shape[1]]


def _forward(tokens_TD, plan):
  return _dispatch(tokens_TD, plan), plan


def _backward(plan, d_rows_RD):
  d_tokens_TD = sum_rows(
    _D_TOKENS.name, to_words(d_rows_RD, d_rows_RD.dtype), plan.row_TK, d_rows_RD.dtype
  )
  return d_tokens_TD[:, : d_rows_RD.shape[1]], None


_dispatch.defvjp(_forward, _backward)
