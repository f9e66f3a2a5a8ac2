"""The routed FFN as Mosaic kernels; see tiled.py for the same mathematics in plain XLA.

    forward   routed_ffn_gate_up    tokens fetched by row · gate, up → SwiGLU · gates →
                                    hidden_RF (gate, up kept)
              routed_ffn_down       hidden · down → rows
              routed_ffn_combine    K rows a token fetched and summed
    backward  routed_ffn_d_down     d_tokens fetched by row · downᵀ → d_gate, d_up, d_gates;
                                    hiddenᵀ · d_tokens → d_down
              routed_ffn_d_rows     d_gate · gateᵀ + d_up · upᵀ → rows
              routed_ffn_d_tokens   K rows a token fetched and summed
              routed_ffn_d_gate_up  tokens fetched by rowᵀ · d_gate, d_up → d_gate_up

Rows that DMAs fetch are 32-bit words (ops/tpu/words.py). Any T, D, E, K; D is padded to a multiple
of 256 (bfloat16) or 128 (float32), F never. A block of rows is 128 to 512 (ops/tpu/visits.py) by
the whole of D or F; where an expert's matrices exceed VMEM, F (or D, of a result) is cut into
tiles, and the rows are read again for each. From an F of about 20,000 (float32: 16,000) blocks of
rows leave no room for a tile, and the compiler says so; splitting F with mesh.tensor helps.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from moe.ops.dispatch_plan import DispatchPlan
from moe.ops.implementation import Unsupported
from moe.ops.kernels import Kernel
from moe.ops.quantized import Quantized, as_products_take
from moe.ops.routed_ffn.types import ExpertWeights
from moe.ops.rows import gates_by_row
from moe.ops.swiglu import swiglu, swiglu_gradients
from moe.ops.tpu import gather
from moe.ops.tpu.dot import dot_nt, dot_tn
from moe.ops.tpu.matrices import times
from moe.ops.tpu.products import grouped_product, own_rows, zero_new_group
from moe.ops.tpu.row_moves import sum_rows, to_words
from moe.ops.tpu.visits import (
  Visits,
  balanced_count,
  by_block,
  column_of,
  first_row,
  fit,
  lanes_of,
  make_visits,
  ragged_tiles_of,
  split_bytes,
  store,
  tiles_of,
  visit_call,
)
from moe.ops.tpu.words import columns_per_group, num_words, padded_width, unpack

_GATE_UP = Kernel('routed_ffn_gate_up', products=2)
_DOWN = Kernel('routed_ffn_down', products=1)
_COMBINE = Kernel('routed_ffn_combine')
_D_DOWN = Kernel('routed_ffn_d_down', backward=True, products=2)
_D_ROWS = Kernel('routed_ffn_d_rows', backward=True, products=2)
_D_TOKENS = Kernel('routed_ffn_d_tokens', backward=True)
_D_GATE_UP = Kernel('routed_ffn_d_gate_up', backward=True, products=2)
KERNELS = (_GATE_UP, _DOWN, _COMBINE, _D_DOWN, _D_ROWS, _D_TOKENS, _D_GATE_UP)


def routed_ffn(
  tokens_TD: jax.Array,
  gates_TK: jax.Array,
  plan: DispatchPlan,
  weights: ExpertWeights,
  dtype: jnp.dtype,
) -> jax.Array:
  if tokens_TD.shape[0] == 0:
    return tokens_TD.astype(dtype)
  return _routed_ffn(tokens_TD, gates_TK, plan, weights, jnp.dtype(dtype))


def of_stack(
  tokens_TD: jax.Array,
  gates_TK: jax.Array,
  plan: DispatchPlan,
  weights: ExpertWeights,
  first: jax.Array,
  dtype: jnp.dtype,
) -> jax.Array:
  return _run(tokens_TD, gates_TK, plan, weights, jnp.dtype(dtype), keep=False, first=first)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _routed_ffn(tokens_TD, gates_TK, plan, weights, dtype):
  return _run(tokens_TD, gates_TK, plan, weights, dtype, keep=False)[0]


def _forward(tokens_TD, gates_TK, plan, weights, dtype):
  output_TD, kept = _run(tokens_TD, gates_TK, plan, weights, dtype, keep=True)
  return output_TD, (tokens_TD, gates_TK, plan, weights, *kept)


def _run(tokens_TD, gates_TK, plan, weights, dtype, *, keep, first=0):
  cast = _cast(weights, dtype)
  num_rows = plan.token_R.shape[0]
  visits = make_visits(plan.group_sizes_E, num_rows, cast.gate_EDF, dtype, first=first)
  gates_R = gates_by_row(gates_TK.astype(jnp.float32), plan)
  hidden_RF, *kept = _gate_up(
    to_words(tokens_TD, dtype), gates_R, plan, visits, cast, dtype, keep=keep
  )
  words_RW = grouped_product(
    _DOWN.name, [(hidden_RF, cast.down_EFD)], visits, transposed=False, packed=dtype
  )
  output_TD = sum_rows(_COMBINE.name, words_RW, plan.row_TK, dtype)
  return output_TD[:, : tokens_TD.shape[1]], kept


def _backward(dtype, residuals, d_output_TD):
  tokens_TD, gates_TK, plan, weights, gate_RF, up_RF = residuals
  cast, width = _cast(weights, dtype), tokens_TD.shape[1]
  num_rows = plan.token_R.shape[0]
  visits = make_visits(plan.group_sizes_E, num_rows, cast.gate_EDF, dtype, visit_empty=True)
  gates_R = gates_by_row(gates_TK.astype(jnp.float32), plan)
  d_gate_RF, d_up_RF, d_gates_R, d_down_EFD = _d_down(
    to_words(d_output_TD, dtype), gates_R, gate_RF, up_RF, plan, visits, cast.down_EFD
  )
  pairs = [(d_gate_RF, cast.gate_EDF), (d_up_RF, cast.up_EDF)]
  words_RW = grouped_product(_D_ROWS.name, pairs, visits, transposed=True, packed=dtype)
  d_tokens_TD = sum_rows(_D_TOKENS.name, words_RW, plan.row_TK, tokens_TD.dtype)[:, :width]
  d_gate_EDF, d_up_EDF = _d_gate_up(to_words(tokens_TD, dtype), d_gate_RF, d_up_RF, plan, visits)
  d_gates_TK = d_gates_R.at[plan.row_TK].get(mode='promise_in_bounds').astype(gates_TK.dtype)
  d_weights = ExpertWeights(d_gate_EDF[:, :width], d_up_EDF[:, :width], d_down_EFD[:, :, :width])
  d_weights = ExpertWeights(*(d.astype(w.dtype) for d, w in zip(d_weights, weights, strict=True)))
  return d_tokens_TD, d_gates_TK, None, d_weights


_routed_ffn.defvjp(_forward, _backward)


def _cast(weights, dtype):
  """The weights in `dtype`, D padded so that rows pack into words. Raises Unsupported if quantized
  weights would need padding.
  """
  missing = padded_width(weights.gate_EDF.shape[1], dtype) - weights.gate_EDF.shape[1]
  pad = lambda w, axis: jnp.pad(w, [(0, missing * (a == axis)) for a in range(3)]) if missing else w
  if missing and any(isinstance(w, Quantized) for w in weights):
    unit = columns_per_group(dtype)
    raise Unsupported(f'the width of quantized experts must be a multiple of {unit}')
  return ExpertWeights(
    *(pad(as_products_take(w, dtype), axis) for w, axis in zip(weights, (1, 1, 2), strict=True))
  )


class _Fetched:
  """A block's rows of tokens, fetched by DMA and unpacked when the grid reaches the block;
  its later visits reuse them.
  """

  def __init__(
    self, visits: Visits, words_IW: jax.Array, token_R: jax.Array, dtype: jnp.dtype, tiles: int = 1
  ):
    words = words_IW.shape[1] // tiles
    width = words // 128 * columns_per_group(dtype)
    tokens = by_block(token_R, visits.rows)
    indices = [visits.lane_spec(ahead=ahead, memory_space=pltpu.SMEM) for ahead in (0, 1)]
    self.specs = [*indices, pl.BlockSpec(memory_space=pl.ANY)]
    self.arrays = [tokens, tokens, words_IW]
    self.scratch = [
      *gather.scratch(visits.rows, words, words_IW.dtype),
      pltpu.VMEM((visits.rows, width), dtype),
    ]
    self.vmem_bytes = _fetched_bytes(visits.rows, width, dtype)


def _fetched_bytes(rows, width, dtype):
  """VMEM bytes of two buffers of a block's words, and of its unpacked rows."""
  return rows * (2 * num_words(width, dtype) * 4 + width * dtype.itemsize)


def _fetch(visits, start_ref, inputs, scratch, *, tiles=1):
  """The visit's block of rows, in VMEM. With several `tiles` the outer tile selects its columns."""
  here_ref, ahead_ref, words_ref = inputs
  buffer_ref, semaphores, rows_ref = scratch
  i = pl.program_id(1)
  block = visits.block(start_ref[i])

  @pl.when((i == 0) | (block != visits.block(start_ref[jnp.maximum(i - 1, 0)])))
  def _():
    words = buffer_ref.shape[2]
    column = None if tiles == 1 else pl.multiple_of(pl.program_id(0) * words, words)
    fetched = gather.fetch(
      words_ref,
      here_ref,
      ahead_ref,
      buffer_ref,
      semaphores,
      block=block,
      blocks=visits.blocks,
      first=i == 0,
      column=column,
    )
    rows_ref[...] = unpack(fetched).astype(rows_ref.dtype)

  return rows_ref[...]


def _gate_up(words_TW, gates_R, plan, visits, cast, dtype, *, keep):
  """hidden_RF = swiglu(gate, up) · gates and, if `keep`, gate_RF and up_RF; all in `dtype`."""
  _, width, hidden = cast.gate_EDF.shape
  num_rows, rows, size = plan.token_R.shape[0], visits.rows, dtype.itemsize
  fetched, results = _Fetched(visits, words_TW, plan.token_R, dtype), 1 + 2 * keep
  per_column = 4 * width * size + split_bytes(width, dtype) + rows * (2 * results * size + 12)
  outer, tile = ragged_tiles_of(hidden, fetched.vmem_bytes, per_column)
  visited = balanced_count(num_rows, visits.groups, rows)
  matrices = [cast.gate_EDF, cast.up_EDF]
  arrays, structure = jax.tree.flatten(matrices)
  return visit_call(
    _GATE_UP.name,
    functools.partial(_gate_up_kernel, visits=visits, structure=structure),
    visits,
    *fetched.arrays,
    by_block(gates_R, rows),
    *arrays,
    outer=outer,
    in_specs=[
      *fetched.specs,
      visits.lane_spec(),
      *(spec for w in matrices for spec in visits.matrix_specs(w, tile)),
    ],
    out_specs=[visits.row_spec(tile, tiled=True)] * results,
    out_shape=[jax.ShapeDtypeStruct((num_rows, hidden), dtype)] * results,
    scratch=fetched.scratch,
    flops=4 * visited * rows * width * outer * tile,
    bytes_accessed=(outer * num_rows * width + results * num_rows * hidden) * size
    + 2 * visits.read_bytes(cast.gate_EDF),
  )


def _gate_up_kernel(group_ref, start_ref, stop_ref, *refs, visits, structure):
  rows, (gates_ref, *refs), scratch = refs[:3], refs[3:-3], refs[-3:]
  matrices = jax.tree.unflatten(structure, refs[: structure.num_leaves])
  hidden_ref, *kept_refs = refs[structure.num_leaves :]
  x_rD = _fetch(visits, start_ref, rows, scratch)
  gate_rF, up_rF = (times(x_rD, w).astype(x_rD.dtype) for w in matrices)
  first = first_row(visits, start_ref)
  store(hidden_ref, swiglu(gate_rF, up_rF) * column_of(gates_ref[0]), first)
  for ref, value in zip(kept_refs, (gate_rF, up_rF)):
    store(ref, value, first)


def _d_down(words_TW, gates_R, gate_RF, up_RF, plan, visits, down_EFD):
  """d_gate_RF, d_up_RF in the weights' type; float32 d_gates_R, d_down_EFD."""
  num_groups, hidden, width = down_EFD.shape
  dtype, size = down_EFD.dtype, down_EFD.dtype.itemsize
  num_rows, rows = plan.token_R.shape[0], visits.rows
  fetched = _Fetched(visits, words_TW, plan.token_R, dtype)
  per_column = 2 * width * (size + 4) + split_bytes(width, dtype) + rows * (2 * 4 * size + 24)
  outer, tile = ragged_tiles_of(hidden, fetched.vmem_bytes, per_column)
  partial_gates = pl.BlockSpec(
    (1, 1, 1, rows), lambda o, i, group, start, stop: (o, visits.block(start[i]), 0, 0)
  )
  row_tile = visits.row_spec(tile, tiled=True)
  d_gate_RF, d_up_RF, d_gates, d_down_EFD = visit_call(
    _D_DOWN.name,
    functools.partial(_d_down_kernel, visits=visits, hidden=hidden),
    visits,
    *fetched.arrays,
    by_block(gates_R, rows),
    gate_RF,
    up_RF,
    down_EFD,
    outer=outer,
    in_specs=[
      *fetched.specs,
      visits.lane_spec(),
      row_tile,
      row_tile,
      visits.group_spec(tile, width, tiled=0),
    ],
    out_specs=[row_tile, row_tile, partial_gates, visits.group_spec(tile, width, tiled=0)],
    out_shape=[
      jax.ShapeDtypeStruct(gate_RF.shape, dtype),
      jax.ShapeDtypeStruct(up_RF.shape, dtype),
      jax.ShapeDtypeStruct((outer, visits.blocks, 1, rows), jnp.float32),
      jax.ShapeDtypeStruct(down_EFD.shape, jnp.float32),
    ],
    scratch=fetched.scratch,
    flops=4 * balanced_count(num_rows, num_groups, rows) * rows * width * outer * tile,
    bytes_accessed=(outer * num_rows * width + 4 * gate_RF.size) * size
    + down_EFD.size * (size + 4),
  )
  return d_gate_RF, d_up_RF, d_gates.sum(axis=0).reshape(-1)[:num_rows], d_down_EFD


def _d_down_kernel(group_ref, start_ref, stop_ref, *refs, visits, hidden):
  rows, (gates_ref, gate_ref, up_ref, down_ref), outputs, scratch = (
    refs[:3],
    refs[3:7],
    refs[7:-3],
    refs[-3:],
  )
  d_gate_ref, d_up_ref, d_gates_ref, d_down_ref = outputs
  zero_new_group(group_ref, d_down_ref)
  i = pl.program_id(1)
  # Fetches even where the group is empty: the visit may be the block's first.
  dy_rD = _fetch(visits, start_ref, rows, scratch)

  @pl.when(stop_ref[i] > start_ref[i])
  def _():
    gates_r1, gate_rF, up_rF = column_of(gates_ref[0]), gate_ref[...], up_ref[...]
    hidden_rF, d_hidden_rF = swiglu(gate_rF, up_rF), dot_nt(dy_rD, down_ref[...])
    d_gate_rF, d_up_rF = swiglu_gradients(gate_rF, up_rF, d_hidden_rF * gates_r1)
    first = first_row(visits, start_ref)
    store(d_gate_ref, d_gate_rF, first)
    store(d_up_ref, d_up_rF, first)
    column = (
      jax.lax.broadcasted_iota(jnp.int32, hidden_rF.shape, 1)
      + pl.program_id(0) * hidden_rF.shape[1]
    )
    # The last tile may overhang F.
    products_rF = jnp.where(column < hidden, hidden_rF * d_hidden_rF, 0)
    _store_lanes(d_gates_ref, lanes_of(products_rF.sum(axis=1, keepdims=True)), first)
    gated_rF = own_rows(visits, start_ref, stop_ref, hidden_rF * gates_r1).astype(dy_rD.dtype)
    d_down_ref[...] += dot_tn(gated_rF, dy_rD)


def _store_lanes(ref, lanes_1r, first):
  """As `store`, for one number per row, which lie along the lanes."""
  row = jax.lax.broadcasted_iota(jnp.int32, lanes_1r.shape, 1)
  ref[0, 0] = jnp.where(row >= first, lanes_1r, ref[0, 0])


def _d_gate_up(words_TW, d_gate_RF, d_up_RF, plan, visits):
  """float32 d_gate_EDF and d_up_EDF, D padded."""
  dtype, size, (num_rows, hidden) = d_gate_RF.dtype, d_gate_RF.dtype.itemsize, d_gate_RF.shape
  num_groups, rows = plan.group_sizes_E.shape[0], visits.rows
  width = words_TW.shape[1] // 128 * columns_per_group(dtype)
  d_tiles, height, f_tiles, tile = _gradient_tiles(width, hidden, rows, dtype)
  fetched = _Fetched(visits, words_TW, plan.token_R, dtype, d_tiles)
  return visit_call(
    _D_GATE_UP.name,
    functools.partial(_d_gate_up_kernel, visits=visits, tiles=d_tiles),
    visits,
    *fetched.arrays,
    d_gate_RF,
    d_up_RF,
    outer=d_tiles * f_tiles,
    in_specs=[*fetched.specs, *[visits.row_spec(tile, tiled=f_tiles > 1)] * 2],
    out_specs=[visits.group_spec(height, tile, tiled=int(f_tiles > 1))] * 2,
    out_shape=[jax.ShapeDtypeStruct((num_groups, width, hidden), jnp.float32)] * 2,
    scratch=fetched.scratch,
    flops=4 * balanced_count(num_rows, num_groups, rows) * rows * width * f_tiles * tile,
    bytes_accessed=num_rows * (f_tiles * width + 2 * d_tiles * hidden) * size
    + 8 * num_groups * width * hidden,
  )


def _gradient_tiles(width, hidden, rows, dtype):
  """(number, height) of tiles of D and (number, width) of tiles of F:
  D is cut, or F where F is too wide for that.
  """
  size = dtype.itemsize
  # Fixed: rows of F. Per row of D: gradients and fetched rows.
  fixed, per_row = 4 * rows * hidden * size, 16 * hidden + rows * (8 + size)
  d_tiles, height = tiles_of(width, columns_per_group(dtype), fixed, per_row)
  if fit(height, fixed, per_row):
    return d_tiles, height, 1, hidden
  return (
    1,
    width,
    *ragged_tiles_of(hidden, _fetched_bytes(rows, width, dtype), 16 * width + 4 * rows * size),
  )


def _d_gate_up_kernel(group_ref, start_ref, stop_ref, *refs, visits, tiles):
  rows, (d_gate_ref, d_up_ref), outputs, scratch = refs[:3], refs[3:5], refs[5:-3], refs[-3:]
  zero_new_group(group_ref, *outputs)
  i = pl.program_id(1)
  x_rD = _fetch(visits, start_ref, rows, scratch, tiles=tiles)

  @pl.when(stop_ref[i] > start_ref[i])
  def _():
    for d_ref, out_ref in zip((d_gate_ref, d_up_ref), outputs, strict=True):
      out_ref[...] += dot_tn(x_rD, own_rows(visits, start_ref, stop_ref, d_ref[...]))
