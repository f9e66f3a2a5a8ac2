"""What a model's attention recalls from the text before: the loss on held-out pieces that stand
there, and the loss on the same pieces after other text.

copying   a stretch of held-out text, and the same again, all of it but its first piece scored
lookup    a stretch, then one of its pieces again; the piece that follows it there is scored

Both stretches, with which the text begins and which replaces it, are from documents of one domain.

B rows, S pieces of a stretch, M tokens of a row.
"""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from moe.config import Config
from moe.data.batches import held_out_stream
from moe.data.packing import Batch
from moe.data.store import HELD_OUT, PreparedData
from moe.errors import UserError
from moe.evaluate import summed_loss
from moe.parallel.feeding import place_whole
from moe.parallel.sharding import replicated


class Losses(NamedTuple):
  """Nats a scored piece. How much lower it is after its own stretch than after another is the gain
  of attention: without it the two are equal but for the text's subject.
  """

  copying: float
  copying_after_other: float
  lookup: float
  lookup_after_other: float


def losses(
  config: Config,
  params: dict,
  data: PreparedData,
  rows: int = 128,
  seed: int = 0,
  mesh: Mesh | None = None,
) -> Losses:
  """The losses on at most `rows` stretches of every domain, half of data.seq_len long. `seed` draws
  them, the text in their place, and what is looked up.

  UserError if no domain has two held-out documents of that length. `mesh`: the mesh in use, if
  params lie on one.
  """
  generator, length = np.random.default_rng(seed), config.data.seq_len // 2
  compiled = jax.jit(
    lambda params, batch: summed_loss(config, params, batch), out_shardings=replicated(mesh)
  )

  def loss(tokens_BM, scored):
    """The mean over the last `scored` targets of every row."""
    total = weight = 0.0
    for batch in _batches(tokens_BM, scored, config):
      sums = jax.device_get(compiled(params, place_whole(batch, mesh)))
      total, weight = total + float(sums[0]), weight + float(sums[1])
    return total / weight

  pairs = [
    (found_BS, found_BS[of_another(document_B, generator)])
    for domain in (data.held_out_domains if length > 1 else ())
    for found_BS, document_B in [stretches(data, domain, length, rows, generator)]
    if len(set(document_B)) > 1
  ]
  if not pairs:
    raise UserError(
      f'data.seq_len={config.data.seq_len}: no domain has two held-out documents of half as many '
      'pieces, and at least two, to copy'
    )
  stretch_BS, other_BS = map(np.concatenate, zip(*pairs))
  asked_B = places_to_look_up(stretch_BS, generator)[:, None]
  question_B2 = np.take_along_axis(stretch_BS, np.concatenate([asked_B, asked_B + 1], 1), 1)
  after = lambda first, then, scored: loss(np.concatenate([first, then], axis=1), scored)
  return Losses(
    copying=after(stretch_BS, stretch_BS, length - 1),
    copying_after_other=after(other_BS, stretch_BS, length - 1),
    lookup=after(stretch_BS, question_B2, 1),
    lookup_after_other=after(other_BS, question_B2, 1),
  )


def stretches(
  data: PreparedData, domain: str, length: int, rows: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
  """int32 (B, length): at most `rows` stretches that do not overlap, as few of each document as
  possible; and int64 (B,): which document each is of.
  """
  documents, texts = data.documents(HELD_OUT, domain), []
  for number in generator.permutation(len(documents)):
    text_N = held_out_stream(data, documents, int(number))[0][1:-1]  # not BOS and EOS
    if len(text_N) >= length:
      first = int(generator.integers(len(text_N) % length + 1))
      texts.append(text_N[first:][: (len(text_N) - first) // length * length].reshape(-1, length))
    if len(texts) == rows:
      break
  # The first of every document, then the second of every one that has it, ….
  order = sorted((turn, number) for number, text in enumerate(texts) for turn in range(len(text)))
  order = order[:rows]
  found = [texts[number][turn] for turn, number in order]
  return np.array(found, np.int32).reshape(-1, length), np.array([n for _, n in order], np.int64)


def of_another(document_B: np.ndarray, generator: np.random.Generator) -> np.ndarray:
  """int64 (B,): for each stretch the place of one of another document."""
  apart_BB = document_B[:, None] != document_B[None]
  return (generator.random(apart_BB.shape) + apart_BB).argmax(axis=1)


def places_to_look_up(stretch_BS: np.ndarray, generator: np.random.Generator) -> np.ndarray:
  """int64 (B,): the place of a piece in each stretch that has one after it; of a piece that is
  there once, so that one piece alone follows it, unless there is none.
  """
  counts_BS = (stretch_BS[:, :, None] == stretch_BS[:, None, :]).sum(axis=2)
  drawn_BS = generator.random(counts_BS.shape) + (counts_BS == 1)  # these come before all others
  return drawn_BS[:, :-1].argmax(axis=1)


def _batches(tokens_BM, scored, config) -> Iterator[Batch]:
  """Inputs and targets of rows, padded to whole batches and sequences."""
  shape = config.data.batch_size, config.data.seq_len
  used = tokens_BM.shape[1] - 1
  is_scored_BL = np.broadcast_to(np.arange(used) >= used - scored, (len(tokens_BM), used))
  for start in range(0, len(tokens_BM), shape[0]):
    here = slice(start, start + shape[0])
    ones_BL = np.ones_like(tokens_BM[here, 1:])
    of_rows = (
      tokens_BM[here, :-1],
      tokens_BM[here, 1:],
      ones_BL * np.arange(used, dtype=np.int32),
      ones_BL,
      is_scored_BL[here].astype(np.float32),
    )
    yield Batch(*(_padded(values, shape) for values in of_rows))


def _padded(values, shape):
  whole = np.zeros(shape, values.dtype)
  whole[: values.shape[0], : values.shape[1]] = values
  return whole
