"""The compiled programs of decoding: a piece of prompts, and one token of every row.

Their sizes are powers of two (S at most the context), so that few programs serve all requests; a
row does not depend on what they are filled up with. What is drawn with, and how much, are
arguments.
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

# Tokens of a prompt that go through the model at once: no fewer, as shorter pieces cost no less; no
# more, as longer ones are no faster and take memory.
_LEAST_PIECE, _MOST_PIECE = 32, 512
# Positions: of a smaller cache a step costs no less.
_LEAST_ROOM = 128


class Prompt(NamedTuple):
  number: int  # among all prompts of a request
  ids: Sequence[int]


class Rows(NamedTuple):
  """What the rows of a batch go on from. int32."""

  tokens_B: np.ndarray  # the last one drawn, which the cache does not have yet
  positions_B: np.ndarray  # where it goes
  numbers_B: np.ndarray  # of the prompt
  counts_B: np.ndarray  # tokens drawn for it; 0: a row without a prompt


class _Piece(NamedTuple):
  """Of prompts that begin together, tokens from the start-th on."""

  tokens_AL: np.ndarray  # int32
  start: np.ndarray  # int32
  lengths_A: np.ndarray  # int32: of the whole prompts
  numbers_A: np.ndarray  # int32


def room_for(config: Config, positions: int) -> int:
  """S of a cache that holds so many."""
  return min(filled_up(max(positions, _LEAST_ROOM)), config.data.seq_len)


def rows_for(prompts: int) -> int:
  """Rows of a program for so many prompts: every part of a mesh gets as many."""
  rows = filled_up(prompts)
  return rows + -rows % batch_parts()


def prefill(
  model: Transformer, params: dict, drawing: Drawing, prompts: Sequence[Prompt]
) -> tuple[np.ndarray, dict[str, KVCache]]:
  """(what is drawn first after each prompt, their cache, `layers.stacked`); A rows of both, those
  beyond the prompts filled up.
  """
  rows, longest = rows_for(len(prompts)), max(len(prompt.ids) for prompt in prompts)
  length = min(filled_up(max(longest, _LEAST_PIECE)), _MOST_PIECE)
  tokens_AP = np.zeros((rows, longest + -longest % length), np.int32)
  # A row beyond the prompts has one token.
  lengths_A, numbers_A = np.ones(rows, np.int32), np.zeros(rows, np.int32)
  for row, (number, ids) in enumerate(prompts):
    tokens_AP[row, : len(ids)], lengths_A[row], numbers_A[row] = ids, len(ids), number
  chosen_A = np.zeros(rows, np.int32)
  cache = _empty_stacked(model, rows, room_for(model.config, longest))
  for start in range(0, longest, length):
    tokens_AL = tokens_AP[:, start : start + length]
    piece = _Piece(tokens_AL, np.int32(start), lengths_A, numbers_A)
    chosen_A, cache = _after_piece(model, params, drawing, piece, cache, chosen_A)
  return np.asarray(chosen_A), cache


@functools.partial(jax.jit, static_argnums=0, donate_argnums=4)
def _after_piece(model, params, drawing, piece, cache, chosen_A):
  """By the stacks, scanned: a program's compilation does not grow with depth, and the copy of a
  layer's weights is a small part of the work on so many tokens.
  """
  shape = piece.tokens_AL.shape
  positions_AL = jnp.broadcast_to(piece.start + jnp.arange(shape[1]), shape)
  is_token_AL = positions_AL < piece.lengths_A[:, None]
  inputs = piece.tokens_AL, positions_AL, is_token_AL.astype(jnp.int32), cache
  hidden_ALD, _, cache = model.apply({'params': params}, *inputs)
  last_A = piece.lengths_A - 1 - piece.start
  hidden_AD = hidden_ALD[jnp.arange(shape[0]), jnp.clip(last_A, 0, shape[1] - 1)]
  logits_AV = layers.logits(model, params, hidden_AD)
  first_A = draw(logits_AV, drawing, piece.numbers_A, jnp.zeros_like(piece.numbers_A))
  is_here_A = (last_A >= 0) & (last_A < shape[1])
  return jnp.where(is_here_A, first_A, chosen_A), _stack_laid_out(cache)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=4)
def step(
  model: Transformer, params: dict, drawing: Drawing, rows: Rows, cache: layers.Cache
) -> tuple[jax.Array, layers.Cache]:
  """(the next token of every row, the cache with the last ones); params: `layers.by_layer`."""
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
