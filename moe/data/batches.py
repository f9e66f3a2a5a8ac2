"""Prepared data → batches. Training: a Grain stream that is a pure function
of the seed and the step.

    documents of a domain, permuted once → one stream of tokens → rows of L
    → shuffled every epoch, repeated → domains mixed by weight → batches
    → every process its slice → prefetched

L tokens a row, B rows of the global batch. What step s sees depends on neither threads, nor the
number of processes, nor where the stream was last restored.

Conversations (data.format) are packed into rows of L instead, anew each epoch: chat/packing.py.
"""

from collections.abc import Iterator

import grain
import numpy as np

from moe.config import Config
from moe.data import packing
from moe.data.chat.packing import ENDLESS, rows_of
from moe.data.documents import Documents
from moe.data.order import permutation, seed_of
from moe.data.packing import Batch
from moe.data.store import HELD_OUT, TRAIN, PreparedData
from moe.errors import UserError

_EVALUATION_SEED = 0  # fixed: runs of different data.seed are judged on the same documents
_OPEN_ROWS = 16  # rows of evaluation that are filled side by side


def train_iterator(
  prepared: PreparedData, config: Config, process_index: int = 0, process_count: int = 1
) -> grain.DatasetIterator:
  """Endless iterator over this process's `Batch` of each step, (B / process_count, L).

  Process p has rows [p·B/P, (p+1)·B/P) of the global batch. get_state() is a small JSON-able dict,
  the same for the same step however the stream is read; set_state() takes it back.
  """
  data = config.data
  if data.batch_size % process_count:
    raise UserError(
      f'data.batch_size={data.batch_size} is not divisible by the {process_count} processes'
    )
  parts = [_endless_rows(prepared, domain, data) for domain in prepared.domains]
  batches = grain.MapDataset.mix(parts, weights=prepared.weights)
  batches = batches.batch(data.batch_size // process_count, batch_fn=packing.stack_rows)
  options = grain.ReadOptions(num_threads=data.num_threads, prefetch_buffer_size=data.prefetch)
  return iter(batches[process_index::process_count].to_iter_dataset(options))


def _endless_rows(prepared, domain, data):
  """The rows of a domain, epoch after epoch, each in an order of its own."""
  if data.format == 'chat':
    return grain.MapDataset.source(rows_of(prepared, domain, data))
  rows = TrainingRows(prepared, domain, data.seq_len, data.seed, data.reset_at_documents)
  shuffled = grain.MapDataset.source(rows).shuffle(seed_of(data.seed, domain) % 2**32)
  return shuffled.repeat(-(-ENDLESS // len(rows)))


def epochs_per_step(prepared: PreparedData, config: Config) -> dict[str, float]:
  """By domain, the mean share of its training text that one step sees."""
  total = sum(prepared.weights)
  found = {}
  for domain, weight in zip(prepared.domains, prepared.weights):
    if config.data.format == 'chat':
      # Rows of the first epoch; other epochs have nearly as many.
      rows = len(rows_of(prepared, domain, config.data).epoch(0))
    else:
      text = prepared.totals(TRAIN, domain)
      # Counts BOS and EOS of every document; the very first token is no target.
      targets = text['tokens'] + 2 * text['documents'] - 1
      rows = -(-targets // config.data.seq_len)
    found[domain] = config.data.batch_size * weight / total / rows
  return found


class TrainingRows:
  """Random access to the rows of one epoch of a domain: row i has inputs i·L … of the stream
  and the targets after them.

  The stream is BOS t1 … tn EOS of every document, in an order that `seed` decides. Neighbouring
  rows share one token, a target in the first and an input in the next.
  The last row is padded, not dropped. Every row tells its domain.
  """

  def __init__(self, prepared: PreparedData, domain: str, seq_len: int, seed: int, reset: bool):
    self._documents: Documents = prepared.documents(TRAIN, domain)
    self._bos, self._eos = prepared.tokenizer.bos_id, prepared.tokenizer.eos_id
    self._seq_len, self._reset = seq_len, reset
    self._domain_J = np.array([name == domain for name in prepared.domains], np.float32)
    self._identity = f'TrainingRows({domain!r}, {seq_len=}, {seed=}, {reset=})'
    first = self._documents.first_record
    order_D = permutation(len(self._documents), seed_of(seed, f'{domain} documents'))
    counts_D = np.diff(first)[order_D]
    # Records in the order of the stream: those of a document stay together.
    ends_D = np.cumsum(counts_D)
    within_R = np.arange(ends_D[-1]) - np.repeat(ends_D - counts_D, counts_D)
    self._records_R = np.repeat(first[:-1][order_D], counts_D) + within_R
    self._opens_R = within_R == 0  # preceded by BOS
    self._closes_R = np.zeros(ends_D[-1], bool)  # followed by EOS
    self._closes_R[ends_D - 1] = True
    lengths_R = (
      self._documents.record_tokens[self._records_R].astype(np.int64)
      + self._opens_R
      + self._closes_R
    )
    self._ends_R = np.cumsum(lengths_R)

  def __len__(self) -> int:
    targets = int(self._ends_R[-1]) - 1  # every token of the stream but the first
    return -(-targets // self._seq_len)

  def __repr__(self) -> str:
    return self._identity

  def __getitem__(self, row: int) -> Batch:
    """One row: `Batch` fields (L,), and its domain (J,)."""
    begin = int(row) * self._seq_len
    end = min(begin + self._seq_len + 1, int(self._ends_R[-1]))
    first, last = np.searchsorted(self._ends_R, (begin, end - 1), side='right')
    tokens, starts = [], []
    for place in range(first, last + 1):
      opens, closes = bool(self._opens_R[place]), bool(self._closes_R[place])
      record_N = self._documents.record(self._records_R[place]).astype(np.int32)
      tokens_N = np.concatenate(
        [[self._bos] * opens, record_N, [self._eos] * closes], dtype=np.int32, casting='unsafe'
      )
      starts_N = np.zeros(len(tokens_N), bool)
      starts_N[0] = opens
      tokens.append(tokens_N)
      starts.append(starts_N)
    skipped = begin - int(self._ends_R[first]) + len(tokens[0])
    here = slice(skipped, skipped + end - begin)
    tokens_N, starts_N = np.concatenate(tokens)[here], np.concatenate(starts)[here]
    row = packing.training_row(tokens_N, starts_N, self._seq_len, self._reset)
    return row._replace(domains_BJ=self._domain_J)


def evaluation_batches(
  prepared: PreparedData, domain: str, config: Config, max_batches: int | None = None
) -> Iterator[Batch]:
  """Held-out documents of a domain as batches (evaluation.batch_size, L):
  every t1 … tn and EOS is scored once, or in conversations every learnt token.

  `max_batches`: stop after so many. The order of documents is a fixed permutation,
  so the first batches are a sample of the whole.
  """
  documents = prepared.documents(HELD_OUT, domain)
  seq_len, batch_size = config.data.seq_len, config.evaluation.batch_size

  def windows():
    for number in permutation(len(documents), _EVALUATION_SEED):
      stream_N, is_scored_N = held_out_stream(prepared, documents, number)
      yield from packing.windows(stream_N, seq_len, config.evaluation.context, is_scored_N)

  rows = packing.pack_windows(windows(), seq_len, _OPEN_ROWS)
  for number, batch in enumerate(packing.batch_rows(rows, batch_size)):
    if number == max_batches:
      return
    yield batch


def held_out_stream(
  prepared: PreparedData, documents: Documents, number: int
) -> tuple[np.ndarray, np.ndarray | None]:
  """(int32 tokens as a model reads and predicts them, which of them are scored or None for all).

  A text is BOS t1 … tn EOS; a conversation has control pieces of its own.
  """
  if documents.is_chat:
    tokens_N, learnt_N = documents.conversation(number)
    return tokens_N.astype(np.int32), learnt_N
  tokenizer = prepared.tokenizer
  ids = [[tokenizer.bos_id], documents.document(number), [tokenizer.eos_id]]
  return np.concatenate(ids).astype(np.int32), None


def held_out_bytes(prepared: PreparedData, domain: str) -> int:
  """UTF-8 bytes of the original text that `evaluation_batches` scores in full:
  the denominator of bits per byte.
  """
  return prepared.totals(HELD_OUT, domain)['bytes']


def held_out_targets(prepared: PreparedData, domain: str) -> int:
  """How many targets `evaluation_batches` scores in full:
  every token, and the end of every document; in conversations only the learnt tokens.
  """
  totals = prepared.totals(HELD_OUT, domain)
  if 'learnt' in totals:
    return totals['learnt']
  return totals['tokens'] + totals['documents']


def lost_bytes(prepared: PreparedData, domain: str) -> int:
  """Bytes of the held-out text that its tokens lose:
  a foreign tokenizer lacks pieces for them, or normalises them away.
  """
  return prepared.totals(HELD_OUT, domain).get('lost', {}).get('bytes', 0)


def held_out_text(prepared: PreparedData, domain: str) -> bytes:
  """The original held-out text of a domain, documents end to end."""
  return prepared.held_out_text(domain)
