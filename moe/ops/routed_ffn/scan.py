"""The routed FFN for XLA:CPU: a scan over experts, each running dense products over blocks of its own rows.

A grouped matmul costs O(E) FLOPs on this platform; here each expert's rows are rounded up to the block that holds the
last of them, so that the FLOPs are those of the rows and at most as many again.
Gather, three products and SwiGLU of a block happen while it is in cache. The gate multiplies the F-wide activation, so
combine is a plain sum of rows. An expert's last block may run over its end: those rows belong to the next experts,
which write them afterwards, or to the padding behind the last row.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from moe.ops.combine.xla import gates_by_row
from moe.ops.dispatch.xla import sum_rows
from moe.ops.matmul import matmul, matmul_nt, matmul_tn
from moe.ops.plan import DispatchPlan
from moe.ops.routed_ffn.types import ExpertWeights
from moe.ops.swiglu import swiglu, swiglu_gradients

_BLOCKS = (256, 128, 64, 32)  # rows handled at once: the smallest that holds what remains of the expert
_PADDING = _BLOCKS[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def routed_ffn(
  tokens_TD: jax.Array, gates_TK: jax.Array, plan: DispatchPlan, weights: ExpertWeights, dtype: jnp.dtype
) -> jax.Array:
  return _forward(tokens_TD, gates_TK, plan, weights, dtype)[0]


def _forward(tokens_TD, gates_TK, plan, weights, dtype):
  cast = ExpertWeights(*(w.astype(dtype) for w in weights))
  token_R, gates_R = _padded(plan.token_R), _padded(gates_by_row(gates_TK, plan))
  x_TD = tokens_TD.astype(dtype)

  def add_expert(buffers, expert):
    size, offset, gate_DF, up_DF, down_FD = expert

    def block(rows, start, buffers):
      gate_buffer, up_buffer, output_buffer = buffers
      x_rD = _gather(x_TD, _slice(token_R, start, rows))
      gate_rF, up_rF = matmul(x_rD, gate_DF).astype(dtype), matmul(x_rD, up_DF).astype(dtype)
      hidden_rF = swiglu(gate_rF, up_rF) * _slice(gates_R, start, rows)[:, None]
      output_rD = matmul(hidden_rF.astype(dtype), down_FD)
      return (
        _put(gate_buffer, gate_rF, start),
        _put(up_buffer, up_rF, start),
        _put(output_buffer, output_rD.astype(dtype), start),
      )

    return _over_blocks(offset, size, buffers, block), None

  _, width, hidden = cast.gate_EDF.shape
  rows = plan.token_R.shape[0]
  empty = tuple(_buffer(rows, columns, dtype) for columns in (hidden, hidden, width))
  (gate_buffer, up_buffer, output_buffer), _ = lax.scan(
    add_expert, empty, (plan.group_sizes_E, plan.group_offsets_E, *cast)
  )
  output_TD = _sum_rows(output_buffer, plan.row_TK, dtype).astype(dtype)
  return output_TD, (tokens_TD, gates_TK, plan, weights, gate_buffer, up_buffer)


def _backward(dtype, residuals, d_output_TD):
  tokens_TD, gates_TK, plan, weights, gate_buffer, up_buffer = residuals
  cast = ExpertWeights(*(w.astype(dtype) for w in weights))
  token_R, gates_R = _padded(plan.token_R), _padded(gates_by_row(gates_TK, plan))
  x_TD, dy_TD = tokens_TD.astype(dtype), d_output_TD.astype(dtype)

  def add_expert(buffers, expert):
    size, offset, gate_DF, up_DF, down_FD = expert

    def block(rows, start, carry):
      (dx_buffer, d_gates_R), (d_gate_DF, d_up_DF, d_down_FD) = carry
      tokens_r = _slice(token_R, start, rows)
      x_rD, dy_rD = _gather(x_TD, tokens_r), _gather(dy_TD, tokens_r)
      gate_rF, up_rF = (_read(buffer, start, rows, dtype) for buffer in (gate_buffer, up_buffer))
      # A zero gate keeps rows past the expert's end out of its weights' gradients.
      mine_r = start + jnp.arange(rows) < offset + size
      gates_r1 = jnp.where(mine_r, _slice(gates_R, start, rows), 0)[:, None]
      hidden_rF, d_hidden_rF = swiglu(gate_rF, up_rF), matmul_nt(dy_rD, down_FD)
      d_gate_rF, d_up_rF = (d.astype(dtype) for d in swiglu_gradients(gate_rF, up_rF, d_hidden_rF * gates_r1))
      dx_rD = matmul_nt(d_gate_rF, gate_DF) + matmul_nt(d_up_rF, up_DF)
      return (
        (_put(dx_buffer, dx_rD.astype(dtype), start), _put(d_gates_R, (hidden_rF * d_hidden_rF).sum(axis=-1), start)),
        (
          d_gate_DF + matmul_tn(x_rD, d_gate_rF),
          d_up_DF + matmul_tn(x_rD, d_up_rF),
          d_down_FD + matmul_tn((hidden_rF * gates_r1).astype(dtype), dy_rD),
        ),
      )

    zeros = tuple(jnp.zeros(w.shape, jnp.float32) for w in (gate_DF, up_DF, down_FD))
    return _over_blocks(offset, size, (buffers, zeros), block)

  rows = plan.token_R.shape[0]
  empty = _buffer(rows, tokens_TD.shape[1], dtype), jnp.zeros(rows + _PADDING, jnp.float32)
  (dx_buffer, d_gates_R), d_weights = lax.scan(add_expert, empty, (plan.group_sizes_E, plan.group_offsets_E, *cast))
  d_tokens_TD = _sum_rows(dx_buffer, plan.row_TK, dtype).astype(tokens_TD.dtype)
  d_gates_TK = d_gates_R.at[plan.row_TK].get(mode='promise_in_bounds').astype(gates_TK.dtype)
  d_weights = ExpertWeights(*(d.astype(w.dtype) for d, w in zip(d_weights, weights, strict=True)))
  return d_tokens_TD, d_gates_TK, None, d_weights


routed_ffn.defvjp(_forward, _backward)


def _over_blocks(start, size, carry, block):
  """carry = block(rows, position, carry) over [start, start + size), big blocks first; the last may overrun."""
  end = start + size
  state = start, carry
  for rows, smaller in zip(_BLOCKS, (*_BLOCKS[1:], 0), strict=True):
    # What remains fills this block, or is too much for the next smaller one.
    more = lambda state, smaller=smaller: end - state[0] > smaller
    step = lambda state, rows=rows: (state[0] + rows, block(rows, *state))
    state = lax.while_loop(more, step, state)
  return state[1]


# XLA:CPU rewrites a whole bfloat16 loop buffer at every update, but not one of its bits as integers.
def _buffer(rows, columns, dtype):
  return jnp.zeros((rows + _PADDING, columns), jnp.uint16 if dtype == jnp.bfloat16 else dtype)


def _put(buffer, values, start):
  values = lax.bitcast_convert_type(values, jnp.uint16) if buffer.dtype == jnp.uint16 else values
  return lax.dynamic_update_slice_in_dim(buffer, values, start, axis=0)


def _read(buffer, start, rows, dtype):
  return _as_floats(_slice(buffer, start, rows), dtype)


def _as_floats(stored, dtype):
  return lax.bitcast_convert_type(stored, dtype) if stored.dtype == jnp.uint16 else stored


def _sum_rows(buffer, row_TK, dtype):
  return sum_rows(_as_floats(buffer, dtype), row_TK)


def _slice(x, start, rows):
  return lax.dynamic_slice_in_dim(x, start, rows)


def _gather(x_TD, tokens_r):
  return x_TD.at[tokens_r].get(mode='promise_in_bounds')


def _padded(values_R):
  return jnp.pad(values_R, (0, _PADDING))
