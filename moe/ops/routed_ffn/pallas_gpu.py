"""The routed FFN as Triton kernels: the arithmetic of tiled.py,
with what surrounds each product fused into it.

Forward: tokens are gathered as the gate and up products load them; SwiGLU and the gate of the
assignment (folded into the F-wide activation, so that combine is a plain sum) follow in the same
kernel; then the down product; then the sum of each token's K rows. Backward makes the two gradients
of each of forward's three products and repeats none of these: forward keeps gate and up, in
`dtype`.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from moe.ops.dispatch_plan import DispatchPlan
from moe.ops.gpu.grouped import column_tile, rows_times_matrices, rows_times_rows, write
from moe.ops.gpu.kernels import load, store
from moe.ops.gpu.row_moves import sum_rows
from moe.ops.kernels import Kernel
from moe.ops.quantized import as_products_take
from moe.ops.routed_ffn.types import ExpertWeights
from moe.ops.rows import gates_by_row
from moe.ops.swiglu import swiglu, swiglu_gradients

_UP = Kernel('routed_ffn_up', products=2)
_DOWN = Kernel('routed_ffn_down', products=1)
_COMBINE = Kernel('routed_ffn_combine')
_D_HIDDEN = Kernel('routed_ffn_d_hidden', backward=True, products=1)
_D_ROWS = Kernel('routed_ffn_d_rows', backward=True, products=2)
_D_TOKENS = Kernel('routed_ffn_d_tokens', backward=True)
_D_UP_WEIGHTS = Kernel('routed_ffn_d_up_weights', backward=True, products=2)
_D_DOWN_WEIGHTS = Kernel('routed_ffn_d_down_weights', backward=True, products=1)
KERNELS = (_UP, _DOWN, _COMBINE, _D_HIDDEN, _D_ROWS, _D_TOKENS, _D_UP_WEIGHTS, _D_DOWN_WEIGHTS)
# The accumulator gets 1 / this of the registers: the epilogue needs the rest, or it spills.
_D_HIDDEN_SHARE = 4


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def routed_ffn(
  tokens_TD: jax.Array,
  gates_TK: jax.Array,
  plan: DispatchPlan,
  weights: ExpertWeights,
  dtype: jnp.dtype,
) -> jax.Array:
  return _forward(tokens_TD, gates_TK, plan, weights, dtype)[0]


def of_stack(
  tokens_TD: jax.Array,
  gates_TK: jax.Array,
  plan: DispatchPlan,
  weights: ExpertWeights,
  first: jax.Array,
  dtype: jnp.dtype,
) -> jax.Array:
  return _forward(tokens_TD, gates_TK, plan, weights, dtype, first)[0]


def _forward(tokens_TD, gates_TK, plan, weights, dtype, first=0):
  rows, (_, width, hidden) = plan.token_R.shape[0], weights.gate_EDF.shape
  residuals = tokens_TD, gates_TK, plan, weights
  row_array = lambda columns: jax.ShapeDtypeStruct((rows, columns), dtype)
  if rows == 0:
    return jnp.zeros(tokens_TD.shape, dtype), (*residuals, *(jnp.zeros((0, hidden), dtype),) * 2)
  cast = ExpertWeights(*(as_products_take(w, dtype) for w in weights))

  gate_RF, up_RF, hidden_RF = rows_times_matrices(
    _UP.name,
    [tokens_TD.astype(dtype)],
    [cast.gate_EDF, cast.up_EDF],
    plan.group_sizes_E,
    [row_array(hidden)] * 3,
    _activate,
    tokens_R=plan.token_R,
    extras=[gates_by_row(gates_TK, plan)],
    share=2,
    first=first,
  )
  [output_RD] = rows_times_matrices(
    _DOWN.name,
    [hidden_RF],
    [cast.down_EFD],
    plan.group_sizes_E,
    [row_array(width)],
    write,
    first=first,
  )
  output_TD = sum_rows(_COMBINE.name, output_RD, plan.row_TK, dtype)
  return output_TD, (*residuals, gate_RF, up_RF)


def _activate(block, extra_refs, output_refs):
  """Stores gate and up rounded to their type, then their SwiGLU times the assignments' gates."""
  [gates_ref], (gate_ref, up_ref, hidden_ref) = extra_refs, output_refs
  gate, up = (x.astype(gate_ref.dtype) for x in block.products)
  store(gate_ref, gate, block.rows, block.columns)
  store(up_ref, up, block.rows, block.columns)
  hidden = swiglu(gate, up) * load(gates_ref, block.rows)[:, None]
  store(hidden_ref, hidden, block.rows, block.columns)


def _backward(dtype, residuals, d_output_TD):
  tokens_TD, gates_TK, plan, weights, gate_RF, up_RF = residuals
  (rows, hidden), width, sizes_E = gate_RF.shape, tokens_TD.shape[1], plan.group_sizes_E
  if rows == 0:
    zeros = lambda x: jax.tree.map(jnp.zeros_like, x)
    return zeros(tokens_TD), zeros(gates_TK), None, zeros(weights)
  cast = ExpertWeights(*(w.astype(dtype) for w in weights))
  x_TD, dy_TD = tokens_TD.astype(dtype), d_output_TD.astype(dtype)

  column_tiles = pl.cdiv(hidden, column_tile(hidden, _D_HIDDEN_SHARE, jnp.dtype(dtype)))
  d_gate_RF, d_up_RF, gated_RF, d_gates = rows_times_matrices(
    _D_HIDDEN.name,
    [dy_TD],
    [cast.down_EFD],
    sizes_E,
    [
      *[jax.ShapeDtypeStruct((rows, hidden), dtype)] * 3,
      jax.ShapeDtypeStruct((column_tiles, rows), jnp.float32),
    ],
    _differentiate,
    transposed=True,
    tokens_R=plan.token_R,
    extras=[gate_RF, up_RF, gates_by_row(gates_TK, plan)],
    share=_D_HIDDEN_SHARE,
  )
  [dx_RD] = rows_times_matrices(
    _D_ROWS.name,
    [d_gate_RF, d_up_RF],
    [cast.gate_EDF, cast.up_EDF],
    sizes_E,
    [jax.ShapeDtypeStruct((rows, width), dtype)],
    write,
    transposed=True,
  )
  d_tokens_TD = sum_rows(_D_TOKENS.name, dx_RD, plan.row_TK, tokens_TD.dtype)
  types = ExpertWeights(*(w.dtype for w in weights))
  d_up_matrices = rows_times_rows(
    _D_UP_WEIGHTS.name,
    x_TD,
    [d_gate_RF, d_up_RF],
    sizes_E,
    types[:2],
    left_tokens_R=plan.token_R,
  )
  d_down = rows_times_rows(
    _D_DOWN_WEIGHTS.name, gated_RF, [dy_TD], sizes_E, types[2:], right_tokens_R=plan.token_R
  )
  d_gates_TK = (
    d_gates.sum(axis=0).at[plan.row_TK].get(mode='promise_in_bounds').astype(gates_TK.dtype)
  )
  return d_tokens_TD, d_gates_TK, None, ExpertWeights(*d_up_matrices, *d_down)


def _differentiate(block, extra_refs, output_refs):
  """Stores d_gate, d_up, the gated hidden, and this tile's share of the gradient of the
  assignments' gates, given the gradient of the gated hidden.

  The shares of all column tiles are added later: a sum over F in a fixed order.
  """
  gate_ref, up_ref, gates_ref = extra_refs
  d_gate_ref, d_up_ref, gated_ref, d_gates_ref = output_refs
  [d_hidden] = block.products
  gates = load(gates_ref, block.rows)[:, None]
  # Each result is stored before the operands of the next are loaded (again, from cache):
  # more at a time would spill.
  activations = lambda: [load(ref, block.rows, block.columns) for ref in (gate_ref, up_ref)]
  hidden = swiglu(*activations())
  store(d_gates_ref, (hidden * d_hidden).sum(axis=1), block.rows, leading=(block.column_tile,))
  store(gated_ref, hidden * gates, block.rows, block.columns)
  for which, ref in enumerate((d_gate_ref, d_up_ref)):
    store(ref, swiglu_gradients(*activations(), d_hidden * gates)[which], block.rows, block.columns)


routed_ffn.defvjp(_forward, _backward)
