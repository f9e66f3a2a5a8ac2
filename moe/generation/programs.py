"""The compiled programs of decoding: prefill of a piece of prompts, and one token of every row.

Their sizes are powers of two (S at most the context), so that few programs serve all requests; a
row does not depend on their padding. What decides a draw is passed as arguments, as are the counts
of drawn tokens.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from moe.config import Config
from moe.data.packing import filled_up
from moe.generation import layers
from moe.generation.sampling import Drawing, draw
from moe.layers.attention import KVCache
from moe.model import Transformer
from moe.parallel import sharding
from moe.parallel.feeding import batch_parts

# Bounds on the tokens of a prompt that go through the model at once: shorter pieces cost no less,
# and longer ones are no faster but take memory.
_LEAST_PIECE, MOST_PIECE = 32, 512
# Tokens that go through at once in a prefill in place: more would take memory and gain little.
_MOST_TOKENS = 512
# The fewest positions of a cache: a step costs no less with a smaller one.
_LEAST_ROOM = 128


class Prompt(NamedTuple):
  number: int  # among all prompts of a request
  ids: Sequence[int]


class Rows(NamedTuple):
  """The state that the rows of a batch go on from. int32."""

  tokens_B: np.ndarray  # the last one drawn, which the cache does not have yet
  positions_B: np.ndarray  # where it goes
  numbers_B: np.ndarray  # of the prompt
  counts_B: np.ndarray  # tokens drawn for it; 0: a row without a prompt


class Piece(NamedTuple):
  """L tokens of each of the prompts that begin together, from position `start` on."""

  tokens_AL: np.ndarray  # int32
  start: np.ndarray  # int32
  lengths_A: np.ndarray  # int32: of the whole prompts
  numbers_A: np.ndarray  # int32


def room_for(config: Config, positions: int) -> int:
  """S of a cache that holds so many positions."""
  return min(filled_up(max(positions, _LEAST_ROOM)), config.data.seq_len)


def rows_for(prompts: int) -> int:
  """Rows of a program for so many prompts: every part of a mesh gets the same number."""
  rows = filled_up(prompts)
  return rows + -rows % batch_parts()


def begun(
  model: Transformer,
  params: dict,
  drawing: Drawing,
  prompts: Sequence[Prompt],
  places: Sequence[int],
  cache: layers.Cache,
) -> tuple[np.ndarray, layers.Cache]:
  """(the first token drawn after each prompt, the cache with the prompts in rows `places`).

  params: stacked, as training has them.
  """
  chosen_A, prefilled = prefill(model, params, drawing, prompts)
  places_A = _filled_up(places, len(chosen_A), _rows_in(cache))
  return chosen_A[: len(prompts)], put_rows(cache, places_A, prefilled)


def begun_in_place(
  model: Transformer,
  params: dict,
  drawing: Drawing,
  prompts: Sequence[Prompt],
  places: Sequence[int],
  cache: layers.Cache,
) -> tuple[np.ndarray, layers.Cache]:
  """As `begun`, but without a second cache, for where memory limits the batch. Layers are unrolled,
  and few tokens go through at once; params: from `weights.by_layer`.
  """
  chosen = []
  longest = max(len(prompt.ids) for prompt in prompts)
  at_once = max(1, _MOST_TOKENS // _piece_length(longest))
  for start in range(0, len(prompts), at_once):
    here = slice(start, start + at_once)
    pieces = _pieces(prompts[here])
    chosen_A = np.zeros(len(pieces[0].lengths_A), np.int32)
    places_A = _filled_up(places[here], len(chosen_A), _rows_in(cache))
    for piece in pieces:
      chosen_A, cache = piece_in_place(model, params, drawing, piece, cache, places_A, chosen_A)
    chosen.append(np.asarray(chosen_A)[: len(prompts[here])])
  return np.concatenate(chosen), cache


def prefill(
  model: Transformer, params: dict, drawing: Drawing, prompts: Sequence[Prompt]
) -> tuple[np.ndarray, dict[str, KVCache]]:
  """(the first token drawn after each prompt, their cache, `layers.stacked`); A rows of both, those
  beyond the prompts being padding.
  """
  pieces, longest = _pieces(prompts), max(len(prompt.ids) for prompt in prompts)
  chosen_A = np.zeros(len(pieces[0].lengths_A), np.int32)
  cache = _empty_stacked(model, len(chosen_A), room_for(model.config, longest))
  for piece in pieces:
    chosen_A, cache = _after_piece(model, params, drawing, piece, cache, chosen_A)
  return np.asarray(chosen_A), cache


def _pieces(prompts):
  """The `Piece`s of prompts that begin together, with as many rows as a program has; rows beyond
  the prompts have one token.
  """
  rows, longest = rows_for(len(prompts)), max(len(prompt.ids) for prompt in prompts)
  length = _piece_length(longest)
  tokens_AP = np.zeros((rows, longest + -longest % length), np.int32)
  lengths_A, numbers_A = np.ones(rows, np.int32), np.zeros(rows, np.int32)
  for row, (number, ids) in enumerate(prompts):
    tokens_AP[row, : len(ids)], lengths_A[row], numbers_A[row] = ids, len(ids), number
  return [
    Piece(tokens_AP[:, start : start + length], np.int32(start), lengths_A, numbers_A)
    for start in range(0, longest, length)
  ]


def _piece_length(longest):
  return min(filled_up(max(longest, _LEAST_PIECE)), MOST_PIECE)


def _filled_up(places, rows, beyond):
  """`places` padded to `rows` of them; a row beyond the prompts goes nowhere."""
  return np.array([*places, *range(beyond, beyond + rows - len(places))], np.int32)


def _rows_in(cache):
  return jax.tree.leaves(cache)[0].shape[0]


@functools.partial(jax.jit, static_argnums=0, donate_argnums=4)
def _after_piece(model, params, drawing, piece, cache, chosen_A):
  """Scans over the stacks: compile time does not grow with depth, and copying a layer's weights is
  a small part of the work on so many tokens.
  """
  positions_AL, is_token_AL = _positions(piece)
  inputs = piece.tokens_AL, positions_AL, is_token_AL.astype(jnp.int32), cache
  hidden_ALD, _, cache = model.apply({'params': params}, *inputs)
  chosen_A = _chosen_after(model, params, drawing, piece, hidden_ALD, chosen_A)
  return chosen_A, _stack_laid_out(cache)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=4)
def piece_in_place(
  model: Transformer,
  params: dict,
  drawing: Drawing,
  piece: Piece,
  cache: layers.Cache,
  places_A: jax.Array,
  chosen_A: jax.Array,
) -> tuple[jax.Array, layers.Cache]:
  """(`chosen_A` with the tokens drawn after prompts that end in this piece, the cache with the
  piece in rows `places_A`); params: from `weights.by_layer`.
  """
  inputs = piece.tokens_AL, *_positions(piece)
  hidden_ALD, cache = layers.advance(model, params, *inputs, cache, places_A)
  return _chosen_after(model, params, drawing, piece, hidden_ALD, chosen_A), cache


def _positions(piece):
  """positions_AL, and which of them have a token."""
  shape = piece.tokens_AL.shape
  positions_AL = jnp.broadcast_to(piece.start + jnp.arange(shape[1]), shape)
  return positions_AL, positions_AL < piece.lengths_A[:, None]


def _chosen_after(model, params, drawing, piece, hidden_ALD, chosen_A):
  rows, length, _ = hidden_ALD.shape
  last_A = piece.lengths_A - 1 - piece.start
  hidden_AD = hidden_ALD[jnp.arange(rows), jnp.clip(last_A, 0, length - 1)]
  logits_AV = layers.logits(model, params, hidden_AD)
  first_A = draw(logits_AV, drawing, piece.numbers_A, jnp.zeros_like(piece.numbers_A))
  return jnp.where((last_A >= 0) & (last_A < length), first_A, chosen_A)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=4)
def step(
  model: Transformer, params: dict, drawing: Drawing, rows: Rows, cache: layers.Cache
) -> tuple[jax.Array, layers.Cache]:
  """(the next token of every row, the cache with the last); params: from `weights.by_layer`."""
  inputs = rows.tokens_B[:, None], rows.positions_B[:, None], rows.counts_B[:, None] > 0
  hidden_B1D, cache = layers.advance(model, params, *inputs, cache)
  logits_BV = layers.logits(model, params, hidden_B1D[:, 0])
  return draw(logits_BV, drawing, rows.numbers_B, rows.counts_B), cache


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def empty(model: Transformer, rows: int, positions: int) -> layers.Cache:
  return layers.empty_cache(model.config.model, rows, positions)


@functools.partial(jax.jit, static_argnums=1)
def grown(cache: layers.Cache, positions: int) -> layers.Cache:
  return layers.grown(cache, positions)


@functools.partial(jax.jit, donate_argnums=0)
def put_rows(cache: layers.Cache, rows_A: np.ndarray, of: dict[str, KVCache]) -> layers.Cache:
  return layers.put_rows(cache, rows_A, of)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _empty_stacked(model, rows, positions):
  return _stack_laid_out(layers.stacked(layers.empty_cache(model.config.model, rows, positions)))


def _stack_laid_out(cache):
  return jax.tree.map(lambda x: sharding.constrain(x, None, 'batch', None, 'heads', None), cache)
