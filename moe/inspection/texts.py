"""The input of a model: texts or token ids → windows of at most data.seq_len → batches.

L tokens of a text, or of a row.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from moe.config import Config
from moe.data import packing
from moe.data.packing import Batch, Window
from moe.data.tokenizers import Tokenizer, must_have
from moe.errors import UserError
from moe.generate import check_unicode

# A text, token ids, or several of either.
Texts = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]] | np.ndarray

_LEAST_LENGTH = 32  # of a row: shorter rows cost no less


class Text(NamedTuple):
  """What a model reads, and what it is to predict."""

  tokens_L: np.ndarray  # int32: of a text BOS t1 … tn; ids as they are given
  # int32, the token after each: of a text t1 … tn EOS; of ids one fewer, as nothing follows the
  # last.
  targets: np.ndarray


class Asked(NamedTuple):
  """Texts, in their order."""

  texts: list[Text]
  is_one: bool  # one text, not a list: then so is the answer


class Place(NamedTuple):
  """A window, and where it belongs."""

  number: int  # of the text
  begin: int  # the window's first token in it
  window: Window


def read(texts: Texts, tokenizer: Tokenizer | None, vocab_size: int) -> Asked:
  """Reads texts or token ids. UserError for anything that is neither text nor ids of this model."""
  if isinstance(texts, str):
    return Asked([_of_text(texts, tokenizer)], True)
  if isinstance(texts, np.ndarray) or not isinstance(texts, (list, tuple)):
    texts = np.asarray(texts)
    is_one = texts.ndim < 2 and texts.dtype.kind != 'U'
  else:
    is_one = bool(texts) and all(isinstance(item, (int, np.integer)) for item in texts)
  several = [texts] if is_one else texts
  made = [
    _of_text(str(item), tokenizer) if isinstance(item, str) else _of_ids(item, number, vocab_size)
    for number, item in enumerate(several)
  ]
  return Asked(made, is_one)


def windows(texts: Iterable[Text], config: Config) -> Iterator[Place]:
  """Yields the windows of every text, as evaluation reads documents. Those of a text longer than
  data.seq_len overlap by evaluation.context of it, and each token counts in the one that scores it.
  """
  length, context = config.data.seq_len, config.evaluation.context
  for number, text in enumerate(texts):
    begin = 0
    # The last of given ids has no target. It gets a dummy here, which readers of results leave out.
    ended_N = np.append(text.tokens_L, text.targets[-1] if len(text.targets) else packing.PAD_ID)
    for window in packing.windows(ended_N, length, context):
      begin -= window.first_scored
      yield Place(number, begin, window)
      begin += len(window.tokens_N)


def batches(
  places: Iterable[Place], batch_size: int, config: Config, parts: int
) -> Iterator[tuple[list[Place], Batch]]:
  """Yields batches of `batch_size` windows, one a row, in the order they come.

  The number of rows and their length are powers of two, at most `batch_size` and data.seq_len, so
  that few programs are compiled. Rows of padding make the number a multiple of `parts`.
  """
  pending: list[Place] = []
  for place in places:
    pending.append(place)
    if len(pending) == batch_size:
      yield pending, _batch(pending, batch_size, config, parts)
      pending = []
  if pending:
    yield pending, _batch(pending, batch_size, config, parts)


def check_batch_size(batch_size: int) -> None:
  if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
    raise UserError(f'batch_size={batch_size} must be a whole number of at least 1')


def _of_text(text, tokenizer):
  check_unicode(text, 'the text')
  tokenizer = must_have(tokenizer)
  ids = [tokenizer.bos_id, *tokenizer.encode(text), tokenizer.eos_id]
  return Text(np.array(ids[:-1], np.int32), np.array(ids[1:], np.int32))


def _of_ids(ids, number, vocab_size):
  ids_L = np.asarray(ids)
  if ids_L.ndim != 1 or not ids_L.size or ids_L.dtype.kind not in 'iu':
    raise UserError(
      f'text {number} must be a string, or token ids: whole numbers, at least one; '
      f'it is {str(ids)[:40]!r}'
    )
  if ids_L.min() < 0 or ids_L.max() >= vocab_size:
    wrong = ids_L[(ids_L < 0) | (ids_L >= vocab_size)][0]
    raise UserError(
      f'text {number}: token id {wrong} must be at least 0 and below model.vocab_size={vocab_size}'
    )
  ids_L = ids_L.astype(np.int32)
  return Text(ids_L, ids_L[1:])


def _batch(places, batch_size, config, parts):
  longest = max(len(place.window.tokens_N) for place in places)
  length = min(packing.filled_up(max(longest, _LEAST_LENGTH)), config.data.seq_len)
  rows = min(packing.filled_up(len(places)), batch_size)
  batch = packing.empty_rows(rows + -rows % parts, length)
  for row, (_, _, window) in enumerate(places):
    here = row, slice(len(window.tokens_N))
    batch.tokens_BL[here], batch.targets_BL[here] = window.tokens_N, window.targets_N
    batch.positions_BL[here] = np.arange(len(window.tokens_N))
    batch.segment_ids_BL[here], batch.weights_BL[here] = 1, 1
  return batch
