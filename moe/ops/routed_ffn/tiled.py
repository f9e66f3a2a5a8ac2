"""The routed FFN for XLA:CPU: small batched products over tiles of rows, each of one expert.

A grouped matmul costs O(E) FLOPs on this platform, and a product of one expert's rows is too small
to fill the cores. So every expert's rows are cut into tiles of at most 256, and tiles of about the
same size are put side by side in `lanes`. A loop over them runs gather, three products and SwiGLU
as batched operations while the data is in cache, twice in a turn. Sizes are rounded up to the rungs
of a ladder, so an expert wastes less than 64 rows. The gate multiplies the F-wide activation, hence
combine is a plain sum of rows.

U tiles, M turns of the loop, n lanes, r rows of a lane (a rung of the ladder), A slots:
rows in the order in which the loop writes them.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from moe.ops.dispatch_plan import DispatchPlan, make_tiles
from moe.ops.matmul import batched, batched_nt, batched_tn
from moe.ops.routed_ffn.types import ExpertWeights
from moe.ops.rows import as_bits, as_floats, gates_by_row, sum_rows, take_rows
from moe.ops.swiglu import swiglu, swiglu_gradients

# Rows of a lane, by whether experts have many rows each or few. Every rung compiles to a loop
# forward and one backward, and these take most of a training step's compile time: rungs are closer
# only where that saves most.
_COARSE, _FINE = (256, 192, 128, 64), (256, 192, 128, 96, 64, 32)
_TILE, _STEP = 256, 64


class _Layout(NamedTuple):
  """Tiles from the largest down, padded to whole turns of the loop, and where their rows go."""

  group_U: jax.Array  # expert of a tile
  start_U: jax.Array  # its first row in the plan's order
  rows_U: jax.Array  # its number of rows; 0 for padding
  slot_TK: jax.Array  # slot of every assignment


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def routed_ffn(
  tokens_TD: jax.Array,
  gates_TK: jax.Array,
  plan: DispatchPlan,
  weights: ExpertWeights,
  dtype: jnp.dtype,
) -> jax.Array:
  return _forward(tokens_TD, gates_TK, plan, weights, dtype)[0]


def _forward(tokens_TD, gates_TK, plan, weights, dtype):
  if plan.token_R.size == 0:
    return jnp.zeros(tokens_TD.shape, dtype), (tokens_TD, gates_TK, plan, weights, None, None)
  x_TD, gates_R = tokens_TD.astype(dtype), gates_by_row(gates_TK, plan)
  lanes = _lanes(weights)
  layout = _make_layout(plan, _turn(lanes))

  def step(rows, tile, slot, buffers):
    gate_buffer, up_buffer, output_buffer = buffers
    token_nr, gates_nr1, group_n = _rows_of_lanes(layout, plan, gates_R, tile, lanes, rows)
    x_nrD = take_rows(x_TD, token_nr)
    gate_nDF, up_nDF, down_nFD = (take_rows(w, group_n).astype(dtype) for w in weights)
    gate_nrF, up_nrF = _parted(batched(x_nrD, w).astype(dtype) for w in _joined(gate_nDF, up_nDF))
    hidden_nrF = (swiglu(gate_nrF, up_nrF) * gates_nr1).astype(dtype)
    output_nrD = batched(hidden_nrF, down_nFD).astype(dtype)
    return (
      _put(gate_buffer, gate_nrF, slot),
      _put(up_buffer, up_nrF, slot),
      _put(output_buffer, output_nrD, slot),
    )

  _, width, hidden = weights.gate_EDF.shape
  slots = _num_slots(plan, _turn(lanes))
  empty = tuple(_buffer(slots, columns, dtype) for columns in (hidden, hidden, width))
  gate_AF, up_AF, output_AD = _over_tiles(layout, plan, lanes, empty, step)
  output_TD = sum_rows(as_floats(output_AD, dtype), layout.slot_TK).astype(dtype)
  return output_TD, (tokens_TD, gates_TK, plan, weights, layout, (gate_AF, up_AF))


def _backward(dtype, residuals, d_output_TD):
  tokens_TD, gates_TK, plan, weights, layout, activations = residuals
  if layout is None:
    return (
      jnp.zeros_like(tokens_TD),
      jnp.zeros_like(gates_TK),
      None,
      jax.tree.map(jnp.zeros_like, weights),
    )
  x_TD, dy_TD, gates_R = (
    tokens_TD.astype(dtype),
    d_output_TD.astype(dtype),
    gates_by_row(gates_TK, plan),
  )
  lanes = _lanes(weights)

  def step(rows, tile, slot, carry):
    dx_buffer, d_gates_buffer, d_weights = carry
    token_nr, gates_nr1, group_n = _rows_of_lanes(layout, plan, gates_R, tile, lanes, rows)
    x_nrD, dy_nrD = take_rows(x_TD, token_nr), take_rows(dy_TD, token_nr)
    gate_nDF, up_nDF, down_nFD = (take_rows(w, group_n).astype(dtype) for w in weights)
    gate_nrF, up_nrF = (_get(buffer, slot, lanes, rows, dtype) for buffer in activations)
    hidden_nrF, d_hidden_nrF = swiglu(gate_nrF, up_nrF), batched_nt(dy_nrD, down_nFD)
    d_gates_nr = (hidden_nrF * d_hidden_nrF).sum(axis=-1)
    d_gate_nrF, d_up_nrF = (
      d.astype(dtype) for d in swiglu_gradients(gate_nrF, up_nrF, d_hidden_nrF * gates_nr1)
    )
    d_joined = _joined(d_gate_nrF, d_up_nrF)
    dx_nrD = sum(
      batched_nt(d, w) for d, w in zip(d_joined, _joined(gate_nDF, up_nDF), strict=True)
    ).astype(dtype)
    d_lanes = (  # rows past a tile's end have a zero gate, which keeps them out
      *_parted(batched_tn(x_nrD, d) for d in d_joined),
      batched_tn((hidden_nrF * gates_nr1).astype(dtype), dy_nrD),
    )
    d_weights = tuple(
      _add_lanes(total, d, group_n) for total, d in zip(d_weights, d_lanes, strict=True)
    )
    return _put(dx_buffer, dx_nrD, slot), _put(d_gates_buffer, d_gates_nr, slot), d_weights

  slots = _num_slots(plan, _turn(lanes))
  d_weights = tuple(jnp.zeros(w.shape, jnp.float32) for w in weights)
  empty = _buffer(slots, tokens_TD.shape[1], dtype), jnp.zeros(slots, jnp.float32), d_weights
  dx_AD, d_gates_A, d_weights = _over_tiles(layout, plan, lanes, empty, step)
  d_tokens_TD = sum_rows(as_floats(dx_AD, dtype), layout.slot_TK).astype(tokens_TD.dtype)
  d_gates_TK = take_rows(d_gates_A, layout.slot_TK).astype(gates_TK.dtype)
  d_weights = ExpertWeights(*(d.astype(w.dtype) for d, w in zip(d_weights, weights, strict=True)))
  return d_tokens_TD, d_gates_TK, None, d_weights


routed_ffn.defvjp(_forward, _backward)


def _lanes(weights):
  """How many tiles lie side by side: several where one expert's matrices are too
  small to keep the cores busy.
  """
  _, width, hidden = weights.gate_EDF.shape
  return 4 if width * hidden <= 1 << 17 else 1


def _turn(lanes):
  """Tiles in one turn of the loop: two steps of `lanes` tiles. Neither step waits for the other's
  products, so cores wait less. Of steps of a single tile a turn has only one: XLA would copy whole
  buffers between two.
  """
  return 2 * lanes if lanes > 1 else 1


def _num_slots(plan, turn):
  """An upper bound on the slots, whatever the routing. Rounding up wastes up to 63 rows an expert.
  A turn's tiles are padded to its longest: since tiles come by size, all turns together waste at
  most one turn of the highest rung. The last turn may be padding.
  """
  highest, _ = _rungs(plan)[0]
  wasted = (_STEP - 1) * plan.group_sizes_E.shape[0]
  return plan.token_R.shape[0] + wasted + 2 * turn * highest


def _make_layout(plan, turn):
  tiles = make_tiles(plan.group_sizes_E, plan.token_R.shape[0], _TILE, aligned=False)
  order_U = jnp.argsort(tiles.start_U - tiles.stop_U, stable=True)  # largest first
  padding = (0, -order_U.size % turn + turn)
  rows_U = jnp.pad((tiles.stop_U - tiles.start_U)[order_U], padding)
  longest_M = rows_U.reshape(-1, turn)[:, 0]  # of every turn
  # Rounded up.
  rung_M = sum(jnp.where(longest_M > smaller, rows - smaller, 0) for rows, smaller in _rungs(plan))
  slot_M = turn * (jnp.cumsum(rung_M) - rung_M)
  slot_U = (slot_M[:, None] + rung_M[:, None] * jnp.arange(turn)[None]).reshape(-1)[: order_U.size]
  # Reordered by the tile's number in the plan.
  slot_U = jnp.zeros_like(slot_U).at[order_U].set(slot_U, unique_indices=True)

  tiles_E = -(-plan.group_sizes_E // _TILE)
  first_tile_E = jnp.cumsum(tiles_E) - tiles_E
  within_TK = plan.row_TK - plan.group_offsets_E[plan.experts_TK]
  slot_TK = slot_U[first_tile_E[plan.experts_TK] + within_TK // _TILE] + within_TK % _TILE
  return _Layout(
    jnp.pad(tiles.group_U[order_U], padding),
    jnp.pad(tiles.start_U[order_U], padding),
    rows_U,
    slot_TK,
  )


def _rungs(plan):
  """(rows, the next smaller rung) from the top of the ladder down. An expert takes a
  token once, so no tile has more rows than there are tokens; each rung left out as
  unneeded is one loop less to compile.
  """
  num_tokens, num_experts = plan.experts_TK.shape[0], plan.group_sizes_E.shape[0]
  ladder = _COARSE if 2 * plan.token_R.shape[0] >= _TILE * num_experts else _FINE
  rungs = zip(ladder, (*ladder[1:], 0), strict=True)
  return [(rows, smaller) for rows, smaller in rungs if smaller < num_tokens]


def _over_tiles(layout, plan, lanes, carry, step):
  """carry = step(rows, tile, slot, carry) for every `lanes` tiles,
  one loop for each rung of the ladder.
  """

  def steps(rows, tile, slot, carry):
    for _ in range(0, _turn(lanes), lanes):
      tile, slot, carry = tile + lanes, slot + lanes * rows, step(rows, tile, slot, carry)
    return tile, slot, carry

  state = jnp.int32(0), jnp.int32(0), carry
  for rows, smaller in _rungs(plan):
    more = lambda state, smaller=smaller: layout.rows_U[state[0]] > smaller
    body = lambda state, rows=rows: steps(rows, *state)
    state = lax.while_loop(more, body, state)
  return state[2]


def _rows_of_lanes(layout, plan, gates_R, tile, lanes, rows):
  """Tokens of the lanes' rows, their gates (zero past a tile's end), and the lanes' experts."""
  group_n, start_n, rows_n = (lax.dynamic_slice_in_dim(x, tile, lanes) for x in layout[:3])
  within_1r = jnp.arange(rows, dtype=jnp.int32)[None]
  row_nr = jnp.minimum(start_n[:, None] + within_1r, plan.token_R.shape[0] - 1)
  gates_nr = jnp.where(within_1r < rows_n[:, None], take_rows(gates_R, row_nr), 0)
  return take_rows(plan.token_R, row_nr), gates_nr[:, :, None], group_n


def _joined(gate, up):
  """Gate and up as one array where they are small:
  one product of twice the width is faster than two.
  """
  if gate.shape[0] == 1:
    return gate, up
  # As bits: XLA:CPU would concatenate bfloat16 in float32.
  return (as_floats(jnp.concatenate([as_bits(gate), as_bits(up)], axis=-1), gate.dtype),)


def _parted(joined):
  """Gate and up, from arrays that were computed from those of `_joined`."""
  arrays = tuple(joined)
  return arrays if len(arrays) == 2 else jnp.split(arrays[0], 2, axis=-1)


def _add_lanes(total_EXY, lanes_nXY, group_n):
  """total_EXY with each lane added to its expert, one after another: lanes may share an expert."""
  for lane in range(lanes_nXY.shape[0]):
    sum_XY = lax.dynamic_index_in_dim(total_EXY, group_n[lane], 0, keepdims=False) + lanes_nXY[lane]
    total_EXY = lax.dynamic_update_index_in_dim(total_EXY, sum_XY, group_n[lane], 0)
  return total_EXY


# XLA:CPU rewrites a whole bfloat16 loop buffer at every update,
# but not one of its bits as integers.
def _buffer(slots, columns, dtype):
  return jnp.zeros((slots, columns), jnp.uint16 if dtype == jnp.bfloat16 else dtype)


def _put(buffer, values_nr, slot):
  values = values_nr.reshape(-1, *values_nr.shape[2:])
  return lax.dynamic_update_slice_in_dim(buffer, as_bits(values), slot, axis=0)


def _get(buffer, slot, lanes, rows, dtype):
  return as_floats(lax.dynamic_slice_in_dim(buffer, slot, lanes * rows), dtype).reshape(
    lanes, rows, -1
  )
