"""Rows gathered from HBM: copies, gated copies, and sums of K of them. No scatter either way.

T tokens, K rows a token, R rows, D columns (D of outputs is padded as in words.py; callers cut it).
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from moe.ops.implementation import interpret
from moe.ops.tpu import gather
from moe.ops.tpu.visits import (
  BLOCK_BYTES,
  LEAST_ROWS,
  SUBLANES,
  by_block,
  column_of,
  compiler_params,
  lanes_of,
)
from moe.ops.tpu.words import (
  LANES,
  columns_per_group,
  num_words,
  pack,
  pad_columns,
  padded_width,
  unpack,
  word_type,
)

_GATHER_BYTES = BLOCK_BYTES // 4  # for two buffers of gathered words


def to_words(x_ID: jax.Array, dtype: jnp.dtype) -> jax.Array:
  """words_IW of rows rounded to `dtype`, columns padded with zeros. This is a kernel because XLA's
  reshapes would take several times the memory.
  """
  width = padded_width(x_ID.shape[1], dtype)
  x_ID = pad_columns(x_ID, width)
  if dtype == jnp.float32:
    return x_ID.astype(dtype)
  num_rows, words = x_ID.shape[0], num_words(width, dtype)
  rows = min(2 * LEAST_ROWS, -(-num_rows // SUBLANES) * SUBLANES)
  return pl.pallas_call(
    functools.partial(_words_kernel, dtype=dtype),
    name='to_words',
    grid=(pl.cdiv(num_rows, rows),),
    in_specs=[pl.BlockSpec((rows, width), lambda i: (i, 0))],
    out_specs=pl.BlockSpec((rows, words), lambda i: (i, 0)),
    out_shape=jax.ShapeDtypeStruct((num_rows, words), word_type(dtype)),
    compiler_params=compiler_params('parallel'),
    cost_estimate=pl.CostEstimate(
      flops=0,
      transcendentals=0,
      bytes_accessed=x_ID.size * x_ID.dtype.itemsize + num_rows * words * 4,
    ),
    interpret=interpret(),
  )(x_ID)


def _words_kernel(x_ref, out_ref, *, dtype):
  out_ref[...] = pack(x_ref[...].astype(jnp.float32), dtype)


def copy_rows(name: str, words_TW: jax.Array, token_R: jax.Array, dtype: jnp.dtype) -> jax.Array:
  """rows_RD in `dtype`: every row a copy of its token, which is given as words of that type."""
  return _gather_rows(name, _copy_kernel, words_TW, token_R, [], dtype, with_products=False)


def gate_rows(
  name: str, words_TW: jax.Array, token_R: jax.Array, gates_R: jax.Array, rows_RD: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """(gates · tokens)_RD in the rows' type, and the float32 inner product of every
  row with its token, by row.
  """
  rows = _rows_per_step(words_TW, token_R.shape[0])
  extra = [(by_block(gates_R, rows), (1, 1, rows)), (rows_RD, (rows, rows_RD.shape[1]))]
  gated_RD, products = _gather_rows(
    name, _gate_kernel, words_TW, token_R, extra, rows_RD.dtype, with_products=True
  )
  return gated_RD, products.reshape(-1)[: token_R.shape[0]]


def _gather_rows(name, kernel, words_TW, token_R, extra, dtype, *, with_products):
  num_rows, words = token_R.shape[0], words_TW.shape[1]
  rows = _rows_per_step(words_TW, num_rows)
  tokens = by_block(token_R, rows)
  blocks, width = tokens.shape[0], words // LANES * columns_per_group(_type_of(words_TW))
  out_shape = [jax.ShapeDtypeStruct((num_rows, width), dtype)]
  out_specs = [pl.BlockSpec((rows, width), lambda i: (i, 0))]
  if with_products:
    out_shape.append(jax.ShapeDtypeStruct((blocks, 1, rows), jnp.float32))
    out_specs.append(pl.BlockSpec((1, 1, rows), lambda i: (i, 0, 0)))
  in_place = lambda shape: pl.BlockSpec(shape, lambda i: (i, *[0] * (len(shape) - 1)))
  outputs = pl.pallas_call(
    functools.partial(kernel, blocks=blocks),
    name=name,
    grid=(blocks,),
    in_specs=[
      *_index_specs(blocks, rows),
      pl.BlockSpec(memory_space=pl.ANY),
      *(in_place(shape) for _, shape in extra),
    ],
    out_specs=out_specs,
    out_shape=out_shape,
    scratch_shapes=gather.scratch(rows, words, words_TW.dtype),
    compiler_params=compiler_params('arbitrary'),
    cost_estimate=pl.CostEstimate(
      flops=3 * num_rows * width * with_products,
      transcendentals=0,
      bytes_accessed=num_rows
      * (words * 4 + width * jnp.dtype(dtype).itemsize * (1 + with_products) + 4),
    ),
    interpret=interpret(),
  )(tokens, tokens, words_TW, *(array for array, _ in extra))
  return outputs if with_products else outputs[0]


def _copy_kernel(here_ref, ahead_ref, words_ref, out_ref, buffer_ref, semaphores, *, blocks):
  words = _fetch(here_ref, ahead_ref, words_ref, buffer_ref, semaphores, blocks)
  out_ref[...] = unpack(words).astype(out_ref.dtype)


def _gate_kernel(
  here_ref,
  ahead_ref,
  words_ref,
  gates_ref,
  rows_ref,
  out_ref,
  products_ref,
  buffer_ref,
  semaphores,
  *,
  blocks,
):
  token_rD = unpack(_fetch(here_ref, ahead_ref, words_ref, buffer_ref, semaphores, blocks))
  out_ref[...] = (column_of(gates_ref[0]) * token_rD).astype(out_ref.dtype)
  products_ref[0] = lanes_of(
    (rows_ref[...].astype(jnp.float32) * token_rD).sum(axis=1, keepdims=True)
  )


def sum_rows(
  name: str,
  words_RW: jax.Array,
  row_TK: jax.Array,
  dtype: jnp.dtype,
  gates_TK: jax.Array | None = None,
) -> jax.Array:
  """tokens_TD in `dtype`: the float32 sum of every token's K rows,
  times its gates if there are any.
  """
  num_tokens, k = row_TK.shape
  words, width = (
    words_RW.shape[1],
    words_RW.shape[1] // LANES * columns_per_group(_type_of(words_RW)),
  )
  tokens = _rows_per_step(words_RW, num_tokens, k)
  # Choice after choice, so that each choice's rows lie together in the buffer.
  row_of = (
    jnp.pad(row_TK, ((0, -num_tokens % tokens), (0, 0))).reshape(-1, tokens, k).swapaxes(1, 2)
  )
  blocks, row_of = row_of.shape[0], row_of.reshape(-1, 1, tokens * k)
  gates = [] if gates_TK is None else [gates_TK]
  return pl.pallas_call(
    functools.partial(_sum_kernel, blocks=blocks, k=k, gated=bool(gates)),
    name=name,
    grid=(blocks,),
    in_specs=[
      *_index_specs(blocks, tokens * k),
      pl.BlockSpec(memory_space=pl.ANY),
      *(pl.BlockSpec((tokens, k), lambda i: (i, 0)) for _ in gates),
    ],
    out_specs=pl.BlockSpec((tokens, width), lambda i: (i, 0)),
    out_shape=jax.ShapeDtypeStruct((num_tokens, width), dtype),
    scratch_shapes=gather.scratch(tokens * k, words, words_RW.dtype),
    compiler_params=compiler_params('arbitrary'),
    cost_estimate=pl.CostEstimate(
      flops=2 * num_tokens * k * width,
      transcendentals=0,
      bytes_accessed=num_tokens * (k * (words * 4 + 8) + width * jnp.dtype(dtype).itemsize),
    ),
    interpret=interpret(),
  )(row_of, row_of, words_RW, *gates)


def _sum_kernel(here_ref, ahead_ref, words_ref, *refs, blocks, k, gated):
  *gates_ref, out_ref, buffer_ref, semaphores = refs
  tokens = out_ref.shape[0]
  _fetch(here_ref, ahead_ref, words_ref, buffer_ref, semaphores, blocks)
  slot = jax.lax.rem(pl.program_id(0), 2)
  total = 0
  for choice in range(k):
    rows = unpack(buffer_ref[slot, pl.ds(choice * tokens, tokens)])
    total += rows * gates_ref[0][:, choice : choice + 1] if gated else rows
  out_ref[...] = total.astype(out_ref.dtype)


def _fetch(here_ref, ahead_ref, words_ref, buffer_ref, semaphores, blocks):
  step = pl.program_id(0)
  return gather.fetch(
    words_ref,
    here_ref,
    ahead_ref,
    buffer_ref,
    semaphores,
    block=step,
    blocks=blocks,
    first=step == 0,
  )


def _index_specs(blocks, rows):
  """Row indices of a step and of the next, in SMEM."""
  here = pl.BlockSpec((1, 1, rows), lambda i: (i, 0, 0), memory_space=pltpu.SMEM)
  ahead = pl.BlockSpec(
    (1, 1, rows), lambda i: (jnp.minimum(i + 1, blocks - 1), 0, 0), memory_space=pltpu.SMEM
  )
  return here, ahead


def _rows_per_step(words_IW, results, choices=1):
  """How many of the `results` a step makes from `choices` rows each: a power of two up to 128."""
  rows = LEAST_ROWS
  while rows > SUBLANES and 2 * rows * choices * words_IW.shape[1] * 4 > _GATHER_BYTES:
    rows //= 2
  return min(rows, -(-results // SUBLANES) * SUBLANES)


def _type_of(words):
  return jnp.dtype(jnp.float32 if words.dtype == jnp.float32 else jnp.bfloat16)
