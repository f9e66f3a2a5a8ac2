"""Moving rows between the order of tokens and that of experts, token by token.

T tokens, K choices a token, R = T·K rows, D width. Each row belongs to one token, so only a token's
program reads or writes its K rows: programs never collide, no atomics are needed, and the result is
the same every time.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from moe.ops.gpu.kernels import Span, call, load, span, store, tile_size

_ELEMENTS = 4096  # of a block: 32 float32 registers a thread of 128


class _Blocks:
  """Blocks of tokens × columns over (T, D)."""

  def __init__(self, num_tokens: int, width: int, elements: int = _ELEMENTS):
    self.columns = tile_size(width, 512)
    self.tokens = elements // self.columns
    self.num_tokens, self.width = num_tokens, width
    self.token_tiles, self.column_tiles = (
      pl.cdiv(num_tokens, self.tokens),
      pl.cdiv(width, self.columns),
    )

  def token_span(self, tile) -> Span:
    return span(tile * self.tokens, self.tokens, self.num_tokens)

  def column_span(self, tile) -> Span:
    return span(tile * self.columns, self.columns, self.width)


def _choice(tokens: Span, choice: int, choices: int) -> Span:
  """The span of the tokens' `choice` in a flattened (T, K) array."""
  return Span(tokens.index * choices + choice, tokens.inside)


def _written(rows: jax.Array, tokens: Span, num_rows: int) -> Span:
  """Rows to write. Lanes past the last token point past the last row.

  On a GPU the mask alone would do. In the interpreter a masked lane writes back what it read,
  and row 0 may have changed since.
  """
  return Span(
    rows if tokens.inside is None else jnp.where(tokens.inside, rows, num_rows), tokens.inside
  )


def sum_rows(
  name: str,
  rows_RD: jax.Array,
  row_TK: jax.Array,
  dtype: jnp.dtype,
  gates_TK: jax.Array | None = None,
) -> jax.Array:
  """tokens_TD: Σ_k gates[t, k] · rows[row_TK[t, k]], summed in float32, rounded to `dtype`.
  Gates default to one.
  """
  (num_tokens, choices), width = row_TK.shape, rows_RD.shape[1]
  if num_tokens == 0:
    return jnp.zeros((0, width), dtype)
  blocks = _Blocks(num_tokens, width)

  def kernel(program, row_ref, rows_ref, *refs):
    *gate_refs, output_ref = refs
    tokens = blocks.token_span(program // blocks.column_tiles)
    columns = blocks.column_span(program % blocks.column_tiles)
    total = 0
    for k in range(choices):
      mine = _choice(tokens, k, choices)
      term = load(rows_ref, Span(load(row_ref, mine)), columns).astype(jnp.float32)
      total += load(gate_refs[0], mine)[:, None] * term if gate_refs else term
    store(output_ref, total, tokens, columns)

  gates = [] if gates_TK is None else [gates_TK.reshape(-1)]
  return call(
    name,
    kernel,
    blocks.token_tiles * blocks.column_tiles,
    [jax.ShapeDtypeStruct((num_tokens, width), dtype)],
    row_TK.reshape(-1),
    rows_RD,
    *gates,
    flops=2 * rows_RD.size,
  )[0]


def copy_to_rows(name: str, tokens_TD: jax.Array, row_TK: jax.Array) -> jax.Array:
  """rows_RD with rows[row_TK[t, k]] = tokens[t]: each token is read once and written K times."""
  (num_tokens, choices), width = row_TK.shape, tokens_TD.shape[1]
  output = jax.ShapeDtypeStruct((num_tokens * choices, width), tokens_TD.dtype)
  if num_tokens == 0:
    return jnp.zeros(output.shape, output.dtype)
  blocks = _Blocks(num_tokens, width)

  def kernel(program, row_ref, tokens_ref, rows_ref):
    tokens = blocks.token_span(program // blocks.column_tiles)
    columns = blocks.column_span(program % blocks.column_tiles)
    block = load(tokens_ref, tokens, columns)
    for k in range(choices):
      row = load(row_ref, _choice(tokens, k, choices))
      store(rows_ref, block, _written(row, tokens, output.shape[0]), columns)

  programs = blocks.token_tiles * blocks.column_tiles
  return call(name, kernel, programs, [output], row_TK.reshape(-1), tokens_TD)[0]


def gated_rows_gradients(
  name: str, d_tokens_TD: jax.Array, rows_RD: jax.Array, gates_TK: jax.Array, row_TK: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """The gradients of `sum_rows` with gates: d_rows_RD in the rows' type, d_gates_TK float32.

  A program handles whole tokens, so that an inner product is summed in one place.
  """
  num_tokens, choices = row_TK.shape
  d_rows, d_gates = (
    jax.ShapeDtypeStruct(rows_RD.shape, rows_RD.dtype),
    jax.ShapeDtypeStruct((rows_RD.shape[0],), jnp.float32),
  )
  if num_tokens == 0:
    return jnp.zeros(d_rows.shape, d_rows.dtype), jnp.zeros((0, choices), jnp.float32)
  # K rows are in flight at once, in one warp: larger blocks would spill.
  blocks = _Blocks(num_tokens, rows_RD.shape[1], _ELEMENTS // 8)

  def kernel(program, row_ref, gates_ref, d_tokens_ref, rows_ref, d_rows_ref, d_gates_ref):
    tokens = blocks.token_span(program)
    mine = [_choice(tokens, k, choices) for k in range(choices)]

    def add(tile, inner_products):
      columns = blocks.column_span(tile)
      d_tokens, sums = load(d_tokens_ref, tokens, columns), []
      for k, inner_product in enumerate(inner_products):
        row = load(row_ref, mine[k])
        d_row = load(gates_ref, mine[k])[:, None] * d_tokens
        store(d_rows_ref, d_row, _written(row, tokens, d_rows.shape[0]), columns)
        sums.append(
          inner_product
          + (load(rows_ref, Span(row), columns).astype(jnp.float32) * d_tokens).sum(axis=1)
        )
      return sums

    zeros = [jnp.zeros(blocks.tokens, jnp.float32)] * choices
    for k, inner_product in enumerate(lax.fori_loop(0, blocks.column_tiles, add, zeros)):
      store(d_gates_ref, inner_product, mine[k])

  operands = row_TK.reshape(-1), gates_TK.reshape(-1), d_tokens_TD, rows_RD
  d_rows_RD, d_gates = call(
    name,
    kernel,
    blocks.token_tiles,
    [d_rows, d_gates],
    *operands,
    num_warps=1,
    flops=4 * rows_RD.size,
  )
  return d_rows_RD, d_gates.reshape(num_tokens, choices)
