"""The routed FFN of a few tokens, a few experts at a time. It reads the weights of chosen experts
and no others.

When tokens are few, reading weights is all that takes time. An expert's weights are sliced from
their stack within the loop, so that the copy stays in the core's cache until its products are done.
They are sliced in the type in which they are stored, so that no more bytes than these are read.

r rows go through one expert at once, n experts in a turn of the loop.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from moe.ops.dispatch_plan import DispatchPlan, make_tiles
from moe.ops.quantized import Quantized
from moe.ops.routed_ffn.types import ExpertWeights
from moe.ops.rows import as_bits, as_floats, gates_by_row, sum_rows, take_rows
from moe.ops.swiglu import swiglu
from moe.ops.weights import product

_ROWS = 4
# XLA:CPU spreads the operations of n experts over the cores, since they do not wait for each other;
# those of one expert all run on one core. Those of many more experts it spreads badly.
_AT_ONCE = 4


def routed_ffn(
  tokens_TD: jax.Array,
  gates_TK: jax.Array,
  plan: DispatchPlan,
  weights: ExpertWeights,
  dtype: jnp.dtype,
) -> jax.Array:
  """As `moe.ops.routed_ffn.routed_ffn`, forward only: xla.py has the gradients."""
  (num_tokens, width), num_rows = tokens_TD.shape, plan.token_R.shape[0]
  x_TD, run = tokens_TD.astype(dtype), functools.partial(_through_expert, weights, dtype)
  if num_tokens == 1:
    experts_K, gates_K = plan.experts_TK[0], gates_TK[0]
    turns = -(-num_rows // _AT_ONCE)
    at_once = -(-num_rows // turns)

    def add(turn, sum_1D):
      for k in (turn * at_once + n for n in range(at_once)):
        # Past the last expert it runs again, with a gate of 0.
        own = jnp.minimum(k, num_rows - 1)
        gate = jnp.where(k < num_rows, gates_K[own], 0)
        sum_1D += run(experts_K[own], x_TD, gate).astype(jnp.float32)
      return sum_1D

    sum_1D = lax.fori_loop(0, turns, add, jnp.zeros((1, width), jnp.float32))
    return sum_1D.astype(dtype)

  rows = min(_ROWS, num_tokens)
  tiles = make_tiles(plan.group_sizes_E, num_rows, rows, aligned=False)
  gates_R = gates_by_row(gates_TK, plan)

  def visit(state):
    first, output_RD = state
    for n in range(_AT_ONCE):
      # Past the last tile it runs again.
      tile = jnp.minimum(first + n, tiles.count - 1)
      start = tiles.start_U[tile]
      # Rows past this expert's end are the next expert's, or none: the next tile overwrites them.
      row_r = jnp.minimum(start + jnp.arange(rows), num_rows - 1)
      x_rD = take_rows(x_TD, take_rows(plan.token_R, row_r))
      output_rD = as_bits(run(tiles.group_U[tile], x_rD, take_rows(gates_R, row_r)[:, None]))
      output_RD = lax.dynamic_update_slice_in_dim(output_RD, output_rD, start, axis=0)
    return first + _AT_ONCE, output_RD

  empty_RD = as_bits(jnp.zeros((num_rows + rows, width), dtype))
  more = lambda state: state[0] < tiles.count
  _, output_RD = lax.while_loop(more, visit, (jnp.int32(0), empty_RD))
  return sum_rows(as_floats(output_RD, dtype), plan.row_TK).astype(dtype)


def _through_expert(weights, dtype, expert, x_rD, gates_r1):
  """gate · FFN_expert(x) for some rows, in the products' type."""
  gate_DF, up_DF, down_FD = (_of_expert(w, expert, dtype) for w in weights)
  gate_rF, up_rF = (product(x_rD, w, 'xla').astype(dtype) for w in (gate_DF, up_DF))
  hidden_rF = (swiglu(gate_rF, up_rF) * gates_r1).astype(dtype)
  return product(hidden_rF, down_FD, 'xla').astype(dtype)


def _of_expert(w_EXY, expert, dtype):
  """One expert's matrix, in the products' type unless it is quantized. Sliced as bits: XLA:CPU
  would first turn a whole bfloat16 stack into float32.
  """

  def cut(stack):
    one = lax.dynamic_index_in_dim(as_bits(stack), expert, keepdims=False)
    return as_floats(one, jnp.bfloat16)

  if isinstance(w_EXY, Quantized):
    return jax.tree.map(cut, w_EXY)
  return cut(w_EXY).astype(dtype)
