"""combine as Mosaic kernels: forward fetches each token's K rows by DMA and sums them;
backward fetches each row's token.

They serve routed_ffn/grouped.py where it is asked for pallas_tpu, benchmarks and launch.aot.
A run with ops.implementation=pallas_tpu does not use them:
routed_ffn/pallas_tpu.py fuses these moves into its products.

Any T, D and K; D is padded up to a multiple of 256 (bfloat16) or 128 (float32).
"""

import jax
import jax.numpy as jnp

from moe.ops.dispatch_plan import DispatchPlan
from moe.ops.kernels import Kernel
from moe.ops.rows import gates_by_row
from moe.ops.tpu.row_moves import gate_rows, sum_rows, to_words
from moe.ops.tpu.words import pad_columns

_COMBINE = Kernel('combine')
_D_ROWS = Kernel('combine_d_rows', backward=True)
KERNELS = (_COMBINE, _D_ROWS)


def combine(rows_RD: jax.Array, gates_TK: jax.Array, plan: DispatchPlan) -> jax.Array:
  if gates_TK.shape[0] == 0:
    return rows_RD.astype(jnp.float32)
  return _combine(rows_RD, gates_TK, plan)


@jax.custom_vjp
def _combine(rows_RD, gates_TK, plan):
  return sum_rows(
    _COMBINE.name, to_words(rows_RD, rows_RD.dtype), plan.row_TK, jnp.float32, gates_TK
  )[:, : rows_RD.shape[1]]


def _forward(rows_RD, gates_TK, plan):
  return _combine(rows_RD, gates_TK, plan), (rows_RD, gates_TK, plan)


def _backward(residuals, d_tokens_TD):
  rows_RD, gates_TK, plan = residuals
  words_TW = to_words(d_tokens_TD, jnp.float32)  # float32: one word per column
  padded_RD = pad_columns(rows_RD, words_TW.shape[1])
  gates_R = gates_by_row(gates_TK.astype(jnp.float32), plan)
  d_rows_RD, d_gates_R = gate_rows(_D_ROWS.name, words_TW, plan.token_R, gates_R, padded_RD)
  d_gates_TK = d_gates_R.at[plan.row_TK].get(mode='promise_in_bounds')
  return d_rows_RD[:, : rows_RD.shape[1]], d_gates_TK.astype(gates_TK.dtype), None


_combine.defvjp(_forward, _backward)
