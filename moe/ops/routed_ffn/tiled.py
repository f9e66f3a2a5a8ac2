"""The routed FFN for XLA:CPU: small batched products over tiles of rows, each of one expert.

A grouped matmul costs O(E) FLOPs on this platform, and in a loop over experts the cores mostly wait for one another.
So every expert has a first tile of H rows, a height that the shapes alone decide, and the first tiles of all experts
are computed in a few banks of experts. Banks do not depend on one another: XLA runs them side by side, each on a core
while its data is in cache, and a weight's gradient is written once, where a loop would fill it with zeros and add.
What an expert has beyond its first tile, its overflow, goes through a loop of further tiles, so no row is dropped; it
recomputes its activations in backward, so nothing is as large as the worst routing. The gate multiplies the F-wide
activation, hence combine is a plain sum of rows.

n experts or tiles side by side, r rows of each, N overflow tiles, S slots: E·H rows of first tiles and one of zeros.
"""

import functools
import math
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from moe.ops.combine.xla import gates_by_row
from moe.ops.dispatch.xla import sum_rows, take_rows
from moe.ops.matmul import batched, batched_nt, batched_tn
from moe.ops.plan import DispatchPlan, make_tiles
from moe.ops.routed_ffn.types import ExpertWeights
from moe.ops.swiglu import swiglu, swiglu_gradients

_LADDER = (256, 128, 64, 32)  # rows of an overflow tile; one compiled loop each
_SMALL = 1 << 17  # elements of a matrix: one product of several such experts keeps the cores busier than of one


class _Rows(NamedTuple):
  """r rows of each of n experts; those past an expert's last stand for some other row, with a gate of zero."""

  row_nr: jax.Array  # in the plan's order
  token_nr: jax.Array
  gates_nr1: jax.Array
  real_nr: jax.Array  # bool


class _Overflow(NamedTuple):
  """Tiles of the rows beyond the first tiles, by falling size, padded to whole steps of the loop."""

  group_N: jax.Array  # expert of a tile
  start_N: jax.Array  # its first row in the plan's order
  rows_N: jax.Array  # its number of rows; 0 for padding


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def routed_ffn(
  tokens_TD: jax.Array, gates_TK: jax.Array, plan: DispatchPlan, weights: ExpertWeights, dtype: jnp.dtype
) -> jax.Array:
  return _forward(tokens_TD, gates_TK, plan, weights, dtype)[0]


def _forward(tokens_TD, gates_TK, plan, weights, dtype):
  if plan.token_R.size == 0:
    return jnp.zeros(tokens_TD.shape, dtype), (tokens_TD, gates_TK, plan, weights, [])
  x_TD, gates_R = tokens_TD.astype(dtype), gates_by_row(gates_TK, plan)
  activations, outputs = [], []
  for experts, rows in _banks(plan, gates_R, weights):
    weights_n = _cast((w[experts] for w in weights), dtype)
    activations.append(_activations(take_rows(x_TD, rows.token_nr), weights_n))
    outputs.append(_output(*activations[-1], rows, weights_n))
  output_TD = sum_rows(_slots(outputs, x_TD.shape[1], dtype), _slot(plan))

  def step(height, tile, output_TD):
    group_n, rows = _rows_of_tiles(overflow, plan, gates_R, tile, height, _lanes(weights))
    weights_n = _cast((_take(w, group_n) for w in weights), dtype)
    output_nrD = _output(*_activations(take_rows(x_TD, rows.token_nr), weights_n), rows, weights_n)
    return _add_rows(output_TD, output_nrD, rows)

  overflow = _overflow(plan, _lanes(weights))
  output_TD = _over_tiles(overflow, _lanes(weights), output_TD, step)
  return output_TD.astype(dtype), (tokens_TD, gates_TK, plan, weights, activations)


def _backward(dtype, residuals, d_output_TD):
  tokens_TD, gates_TK, plan, weights, activations = residuals
  if plan.token_R.size == 0:
    return jnp.zeros_like(tokens_TD), jnp.zeros_like(gates_TK), None, jax.tree.map(jnp.zeros_like, weights)
  x_TD, dy_TD, gates_R = tokens_TD.astype(dtype), d_output_TD.astype(dtype), gates_by_row(gates_TK, plan)
  x_DT = _really_transposed(x_TD)
  results = []
  for (experts, rows), kept in zip(_banks(plan, gates_R, weights), activations, strict=True):
    weights_n = _cast((w[experts] for w in weights), dtype)
    results.append(_gradients(_columns(x_DT, rows.token_nr), take_rows(dy_TD, rows.token_nr), kept, rows, weights_n))
  dx_banks, d_gates_banks, d_weights_banks = zip(*results, strict=True) if results else ((), (), ())
  dx_TD = sum_rows(_slots(dx_banks, x_TD.shape[1], dtype), _slot(plan))
  d_gates_TK = _take(_slots([d[:, :, None] for d in d_gates_banks], 1, jnp.float32)[:, 0], _slot(plan))
  if results:
    d_weights = ExpertWeights(*(jnp.concatenate(parts) for parts in zip(*d_weights_banks, strict=True)))
  else:
    d_weights = ExpertWeights(*(jnp.zeros(w.shape, jnp.float32) for w in weights))

  def step(height, tile, carry):
    dx_TD, d_gates_R, d_weights = carry
    group_n, rows = _rows_of_tiles(overflow, plan, gates_R, tile, height, _lanes(weights))
    weights_n = _cast((_take(w, group_n) for w in weights), dtype)
    again = _activations(take_rows(x_TD, rows.token_nr), weights_n)
    dx_nrD, d_gates_nr, d_weights_n = _gradients(
      _columns(x_DT, rows.token_nr), take_rows(dy_TD, rows.token_nr), again, rows, weights_n
    )
    row_nr = jnp.where(rows.real_nr, rows.row_nr, d_gates_R.size)
    d_gates_R = d_gates_R.at[row_nr].set(d_gates_nr, mode='drop', unique_indices=True)
    d_weights = (_add_matrices(total, d, group_n) for total, d in zip(d_weights, d_weights_n, strict=True))
    return _add_rows(dx_TD, dx_nrD, rows), d_gates_R, ExpertWeights(*d_weights)

  overflow = _overflow(plan, _lanes(weights))
  carry = dx_TD, jnp.zeros(plan.token_R.size, jnp.float32), d_weights
  dx_TD, d_gates_R, d_weights = _over_tiles(overflow, _lanes(weights), carry, step)
  d_gates_TK = (d_gates_TK + _take(d_gates_R, plan.row_TK)).astype(gates_TK.dtype)
  d_weights = ExpertWeights(*(d.astype(w.dtype) for d, w in zip(d_weights, weights, strict=True)))
  return dx_TD.astype(tokens_TD.dtype), d_gates_TK, None, d_weights


routed_ffn.defvjp(_forward, _backward)


def _activations(x_nrD, weights_n):
  """(gate_nrF, up_nrF) in the operands' type."""
  return tuple(batched(x_nrD, w_nDF).astype(x_nrD.dtype) for w_nDF in (weights_n.gate_EDF, weights_n.up_EDF))


def _output(gate_nrF, up_nrF, rows, weights_n):
  hidden_nrF = (swiglu(gate_nrF, up_nrF) * rows.gates_nr1).astype(gate_nrF.dtype)
  return batched(hidden_nrF, weights_n.down_EFD).astype(gate_nrF.dtype)


def _gradients(x_nDr, dy_nrD, activations, rows, weights_n):
  """(dx_nrD, d_gates_nr, gradients of the weights); a zero gate keeps a row out of them, but not out of d_gates_nr."""
  dtype, (gate_nrF, up_nrF) = dy_nrD.dtype, activations
  hidden_nrF, d_hidden_nrF = swiglu(gate_nrF, up_nrF), batched_nt(dy_nrD, weights_n.down_EFD)
  d_gates_nr = (hidden_nrF * d_hidden_nrF).sum(axis=-1)
  d_gate_nrF, d_up_nrF = swiglu_gradients(gate_nrF, up_nrF, d_hidden_nrF * rows.gates_nr1)
  d_gate_nrF, d_up_nrF = d_gate_nrF.astype(dtype), d_up_nrF.astype(dtype)
  dx_nrD = batched_nt(d_gate_nrF, weights_n.gate_EDF) + batched_nt(d_up_nrF, weights_n.up_EDF)
  d_down_nFD = batched_tn((hidden_nrF * rows.gates_nr1).astype(dtype), dy_nrD)
  d_weights = ExpertWeights(batched(x_nDr, d_gate_nrF), batched(x_nDr, d_up_nrF), d_down_nFD)
  return dx_nrD.astype(dtype), d_gates_nr, d_weights


def _height(plan):
  """H: what uniformly random routing gives an expert and two standard deviations. 0, no first tiles, where experts have
  so few rows that most of a tile would be padding and experts without rows would be worth skipping."""
  mean = plan.token_R.size / plan.group_sizes_E.size
  most = plan.experts_TK.shape[0]  # an expert takes a token once
  return 0 if mean < 8 else 16 * math.ceil(min(mean + 2 * math.sqrt(mean), most) / 16)


def _banks(plan, gates_R, weights) -> Iterator[tuple[slice, _Rows]]:
  """The experts of every bank, and the rows of their first tiles."""
  num_experts, height = plan.group_sizes_E.size, _height(plan)
  count = min(8 if _is_small(weights) else 16, num_experts) if height else 0
  for bank in range(count):
    experts = slice(num_experts * bank // count, num_experts * (bank + 1) // count)
    yield experts, _rows(plan, gates_R, plan.group_offsets_E[experts], plan.group_sizes_E[experts], height)


def _slot(plan):
  """slot_TK: of an assignment in a first tile its slot, of overflow the last one, which holds zeros."""
  height = _height(plan)
  within_TK = plan.row_TK - plan.group_offsets_E[plan.experts_TK]
  zeros = plan.group_sizes_E.size * height
  return jnp.where(within_TK < height, plan.experts_TK * height + within_TK, zeros)


def _slots(banks, columns, dtype):
  """Rows of first tiles by slot, and a row of zeros. Joined as bits: XLA:CPU would copy bfloat16 in float32."""
  rows = [_as_bits(x_nrX.reshape(-1, columns)) for x_nrX in banks]
  return _as_floats(jnp.concatenate([*rows, _as_bits(jnp.zeros((1, columns), dtype))]), dtype)


def _rows(plan, gates_R, start_n, size_n, height):
  within_1r = jnp.arange(height, dtype=jnp.int32)[None]
  row_nr = jnp.minimum(start_n[:, None] + within_1r, plan.token_R.size - 1)
  real_nr = within_1r < size_n[:, None]
  gates_nr = jnp.where(real_nr, _take(gates_R, row_nr), 0)
  return _Rows(row_nr, _take(plan.token_R, row_nr), gates_nr[:, :, None], real_nr)


def _is_small(weights):
  return math.prod(weights.gate_EDF.shape[1:]) <= _SMALL


def _lanes(weights):
  """Overflow tiles side by side."""
  return 4 if _is_small(weights) else 1


def _overflow(plan, lanes):
  height = _height(plan)
  sizes_E = jnp.maximum(plan.group_sizes_E - height, 0)
  tiles = make_tiles(sizes_E, plan.token_R.size, _LADDER[0], aligned=False)
  # make_tiles counts rows as if the overflow of all experts lay together.
  skipped_E = plan.group_offsets_E + height - (jnp.cumsum(sizes_E) - sizes_E)
  order_N = jnp.argsort(tiles.start_N - tiles.stop_N, stable=True)  # largest first
  padding = (0, -order_N.size % lanes + lanes)
  columns = tiles.group_N, tiles.start_N + skipped_E[tiles.group_N], tiles.stop_N - tiles.start_N
  return _Overflow(*(jnp.pad(column_N[order_N], padding) for column_N in columns))


def _over_tiles(overflow, lanes, carry, step):
  """carry = step(height, tile, carry) for every `lanes` tiles, one loop for each height of the ladder."""
  state = jnp.int32(0), carry
  for height, smaller in zip(_LADDER, (*_LADDER[1:], 0), strict=True):
    more = lambda state, smaller=smaller: overflow.rows_N[state[0]] > smaller
    body = lambda state, height=height: (state[0] + lanes, step(height, *state))
    state = lax.while_loop(more, body, state)
  return state[1]


def _rows_of_tiles(overflow, plan, gates_R, tile, height, lanes):
  """(experts of the lanes, their rows)"""
  group_n, start_n, size_n = (lax.dynamic_slice_in_dim(column_N, tile, lanes) for column_N in overflow)
  return group_n, _rows(plan, gates_R, start_n, size_n, height)


def _add_rows(total_TD, x_nrD, rows):
  """Rows past a tile's end are zeros, so it does not matter whose they seem to be."""
  return total_TD.at[rows.token_nr].add(x_nrD.astype(jnp.float32), mode='promise_in_bounds')


def _add_matrices(total_EXY, x_nXY, group_n):
  """One after another, since tiles of one expert may lie side by side."""
  for lane in range(x_nXY.shape[0]):
    sum_XY = lax.dynamic_index_in_dim(total_EXY, group_n[lane], 0, keepdims=False) + x_nXY[lane]
    total_EXY = lax.dynamic_update_index_in_dim(total_EXY, sum_XY, group_n[lane], 0)
  return total_EXY


def _columns(x_DT, token_nr):
  """x_nDr: rows of x as columns. A row of x_DT fits in the first cache, where single elements are quickly found."""
  bits_nDr = jax.vmap(lambda token_r: _as_bits(x_DT).at[:, token_r].get(mode='promise_in_bounds'))(token_nr)
  # Without the barrier XLA chooses another layout, in which it has no bfloat16 product.
  return _as_floats(lax.optimization_barrier(bits_nDr.reshape(-1)).reshape(bits_nDr.shape), x_DT.dtype)


def _really_transposed(x_TD):
  bits_DT = _as_bits(x_TD).swapaxes(0, 1)
  return _as_floats(lax.optimization_barrier(bits_DT.reshape(-1)).reshape(bits_DT.shape), x_TD.dtype)


def _cast(weights, dtype):
  return ExpertWeights(*(w.astype(dtype) for w in weights))


def _as_bits(values):
  return lax.bitcast_convert_type(values, jnp.uint16) if values.dtype == jnp.bfloat16 else values


def _as_floats(stored, dtype):
  return lax.bitcast_convert_type(stored, dtype) if stored.dtype == jnp.uint16 else stored


def _take(x, index):
  return x.at[index].get(mode='promise_in_bounds')
