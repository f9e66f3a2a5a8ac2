"""A model's loss on text of random pieces, which only attention can predict.

copying   a stretch of pieces, and the same again; the second is scored, but for its first piece
lookup    pairs of a key and a value, then one of the keys; its value is scored

B sequences, L tokens of one, P pairs.
"""

from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from moe.config import Config
from moe.data.packing import Batch
from moe.data.tokenizers import Tokenizer
from moe.evaluate import summed_loss
from moe.parallel.feeding import place_whole
from moe.parallel.sharding import replicated


class Losses(NamedTuple):
  """Nats a scored token. `chance` is log(pieces), the best loss without attention."""

  copying: float
  copying_first: float  # of the first stretch, which nothing predicts
  lookup: float
  chance: float


def losses(
  config: Config,
  params: dict,
  tokenizer: Tokenizer,
  rows: int = 64,
  pairs: int = 8,
  seed: int = 0,
  mesh: Mesh | None = None,
) -> Losses:
  """The losses on `rows` sequences of each kind. A stretch is half of data.seq_len long.
  A lookup has `pairs` keys, or as many as a sequence holds.

  `mesh`: the mesh in use, if params lie on one.
  """
  pieces = np.flatnonzero(tokenizer.is_text)
  generator = np.random.default_rng(seed)
  compiled = jax.jit(
    lambda params, batch: summed_loss(config, params, batch), out_shardings=replicated(mesh)
  )

  def loss(tokens_BM, is_scored_BL):
    total = scored = 0.0
    size = config.data.batch_size
    for start in range(0, len(tokens_BM), size):
      batch = _batch(tokens_BM[start : start + size], is_scored_BL[start : start + size], config)
      one, weight = jax.device_get(compiled(params, place_whole(batch, mesh)))
      total, scored = total + float(one), scored + float(weight)
    return total / scored

  copied_BM, second_BL = copying_rows(generator, pieces, rows, config.data.seq_len)
  first_BL = second_BL[:, ::-1]
  found_BM, value_BL = lookup_rows(generator, pieces, rows, pairs, config.data.seq_len)
  return Losses(
    copying=loss(copied_BM, second_BL),
    copying_first=loss(copied_BM, first_BL),
    lookup=loss(found_BM, value_BL),
    chance=float(np.log(len(pieces))),
  )


def copying_rows(
  generator: np.random.Generator, pieces: np.ndarray, rows: int, length: int
) -> tuple[np.ndarray, np.ndarray]:
  """int32 tokens (B, 2 · (L // 2)), and bool (B, 2 · (L // 2) − 1): which targets are scored, those
  of the second stretch but its first. The mirrored mask scores as many targets of the first
  stretch.
  """
  half = length // 2
  stretch = generator.choice(pieces, (rows, half))
  is_scored = np.zeros((rows, 2 * half - 1), bool)
  is_scored[:, half:] = True
  return np.concatenate([stretch, stretch], axis=1).astype(np.int32), is_scored


def lookup_rows(
  generator: np.random.Generator, pieces: np.ndarray, rows: int, pairs: int, length: int
) -> tuple[np.ndarray, np.ndarray]:
  """int32 tokens (B, 2P + 2), all keys and values of a row different, and bool (B, 2P + 1): which
  targets are scored, the last alone.
  """
  pairs = max(1, min(pairs, (length - 1) // 2, len(pieces) // 2))
  drawn = np.stack([generator.choice(pieces, 2 * pairs, replace=False) for _ in range(rows)])
  asked_B = generator.integers(0, pairs, rows)
  question = np.stack([drawn[range(rows), 2 * asked_B + last] for last in (0, 1)], axis=1)
  is_scored = np.zeros((rows, 2 * pairs + 1), bool)
  is_scored[:, -1] = True
  return np.concatenate([drawn, question], axis=1).astype(np.int32), is_scored


def _batch(tokens_BM, is_scored, config):
  """Inputs and targets of rows, padded to whole batches and sequences."""
  shape = config.data.batch_size, config.data.seq_len
  rows, used = is_scored.shape
  fill = lambda values, dtype: _padded(values, shape, dtype)
  return Batch(
    fill(tokens_BM[:, :-1], np.int32),
    fill(tokens_BM[:, 1:], np.int32),
    fill(np.broadcast_to(np.arange(used), (rows, used)), np.int32),
    fill(np.ones((rows, used)), np.int32),
    fill(is_scored, np.float32),
  )


def _padded(values, shape, dtype):
  whole = np.zeros(shape, dtype)
  whole[: values.shape[0], : values.shape[1]] = values
  return whole
