"""Conversations of any length → rows of a batch, packed anew each epoch. NumPy only.

L tokens a row, C conversations, D documents of a domain, R rows of an epoch.
"""

import bisect
import threading
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from moe.config import DataConfig
from moe.data import packing
from moe.data.documents import Documents
from moe.data.order import permutation, seed_of
from moe.data.packing import Batch
from moe.data.store import TRAIN, PreparedData
from moe.errors import UserError

WINDOW = 4096  # conversations that are packed together
ENDLESS = 2**40  # rows; Grain's own endless repeat overflows in batches of one row
_EPOCHS_KEPT = 2  # packings in memory: threads read ahead into the next one


class Fitting(NamedTuple):
  """The conversations of a domain that a context can hold, and what became of the others."""

  numbers_C: np.ndarray  # of their documents
  sizes_C: np.ndarray  # inputs of each: its tokens but the last, at most L
  cut: int  # conversations longer than L + 1 tokens that lose their end
  left_out: int  # longer ones that data.too_long drops, or whose beginning has nothing to learn


def fitting(documents: Documents, domain: str, data: DataConfig) -> Fitting:
  """Applies data.too_long to the conversations of a domain. UserError if it leaves none."""
  lengths_D = documents.lengths
  is_long_D = lengths_D > data.seq_len + 1
  stays_D = ~is_long_D
  if data.too_long == 'cut':
    stays_D |= (documents.first_learnt <= data.seq_len) | (data.learn_from == 'all')
  if not stays_D.any():
    raise UserError(
      f'data.seq_len={data.seq_len} is too short for domain {domain!r}: no conversation has '
      f'anything to learn within it, the shortest has {lengths_D.min()} tokens'
    )
  numbers_C = np.flatnonzero(stays_D)
  sizes_C = np.minimum(lengths_D[numbers_C] - 1, data.seq_len)
  return Fitting(numbers_C, sizes_C, int((is_long_D & stays_D).sum()), int((~stays_D).sum()))


def best_fit(sizes: Sequence[int], room: int, window: int = WINDOW) -> list[list[int]]:
  """Rows of indices into `sizes` that sum to at most `room`. Each index goes, in order, into the
  row of its window that then has the least room left, or into a new row.

  In order rather than largest first: that would pack 0.3% denser, but leave the small ones to the
  last rows, and steps would see very different numbers of conversations.
  """
  rows: list[list[int]] = []
  for begin in range(0, len(sizes), window):
    # Rows by the room that is left in them, and these rooms in ascending order.
    by_room: dict[int, list[int]] = {}
    rooms: list[int] = []
    for index in range(begin, min(begin + window, len(sizes))):
      place = bisect.bisect_left(rooms, sizes[index])
      if place == len(rooms):
        left, row = room, len(rows)
        rows.append([])
      else:
        left = rooms[place]
        row = by_room[left].pop()
        if not by_room[left]:
          del by_room[left], rooms[place]
      rows[row].append(index)
      left -= sizes[index]
      if left and left not in by_room:
        by_room[left] = []
        bisect.insort(rooms, left)
      if left:
        by_room[left].append(row)
  return rows


class ConversationRows:
  """Random access to the rows of a domain, one epoch after another; safe to share between threads.

  An epoch has each conversation once. How it is packed, and the order of its rows, are a function
  of (seed, domain, epoch) alone. Each conversation of a row is a segment of its own.
  """

  def __init__(self, prepared: PreparedData, domain: str, data: DataConfig):
    """UserError as `fitting`."""
    self._documents: Documents = prepared.documents(TRAIN, domain)
    self._data, self._domain = data, domain
    self._domain_J = np.array([name == domain for name in prepared.domains], np.float32)
    self.fitting = fitting(self._documents, domain, data)
    self._packed: dict[int, list[list[int]]] = {}
    self._ends = [0]  # rows before each epoch that has been looked at, and after the last one
    self._packing = threading.Lock()

  def __len__(self) -> int:
    return ENDLESS

  def __repr__(self) -> str:
    data = self._data
    return (
      f'ConversationRows({self._domain!r}, {data.seq_len}, {data.seed}, {data.too_long!r}, '
      f'{data.learn_from!r})'
    )

  def __getitem__(self, row: int) -> Batch:
    """One row: `Batch` fields (L,), and its domain (J,)."""
    number = int(row)
    with self._packing:
      while self._ends[-1] <= number:
        self._ends.append(self._ends[-1] + len(self._pack(len(self._ends) - 1)))
      epoch = bisect.bisect_right(self._ends, number) - 1
      members = self._pack(epoch)[number - self._ends[epoch]]
    return self._row(members)

  def epoch(self, number: int) -> list[list[int]]:
    """The rows of an epoch, each a list of its conversations' numbers."""
    with self._packing:
      return self._pack(number)

  def _pack(self, epoch):
    if epoch not in self._packed:
      for old in sorted(self._packed)[: 1 - _EPOCHS_KEPT]:
        del self._packed[old]
      numbers_C, sizes_C, *_ = self.fitting
      seed = lambda purpose: seed_of(self._data.seed, f'{self._domain} {purpose} {epoch}')
      order_C = permutation(len(numbers_C), seed('conversations'))
      rows = best_fit(sizes_C[order_C].tolist(), self._data.seq_len)
      drawn_C = numbers_C[order_C].tolist()
      self._packed[epoch] = [
        [drawn_C[i] for i in rows[row]] for row in permutation(len(rows), seed('rows'))
      ]
    return self._packed[epoch]

  def _row(self, members):
    row, at = packing.empty_rows(self._data.seq_len), 0
    for segment, number in enumerate(members, start=1):
      tokens_N, learnt_N = self._documents.conversation(number)
      tokens_N, learnt_N = (x_N[: self._data.seq_len + 1] for x_N in (tokens_N, learnt_N))
      count = len(tokens_N) - 1
      here = slice(at, at + count)
      row.tokens_BL[here], row.targets_BL[here] = tokens_N[:-1], tokens_N[1:]
      row.positions_BL[here] = np.arange(count)
      row.segment_ids_BL[here] = segment
      row.weights_BL[here] = learnt_N[1:] if self._data.learn_from == 'assistant' else 1
      at += count
    return row._replace(domains_BJ=self._domain_J)


def rows_of(prepared: PreparedData, domain: str, data: DataConfig) -> ConversationRows:
  """The rows of a domain, the same object for all callers, so that an epoch is packed once."""
  return prepared.once(ConversationRows, domain, data)


def notes(prepared: PreparedData, data: DataConfig) -> list[str]:
  """What a user should know about the packing, a line a domain."""
  told = []
  for domain in prepared.domains:
    rows = rows_of(prepared, domain, data)
    packed, chosen = rows.epoch(0), rows.fitting
    count, full = len(chosen.numbers_C), chosen.sizes_C.sum() / (len(packed) * data.seq_len)
    line = (
      f'domain {domain!r}: {count:,} conversations in {len(packed):,} sequences of '
      f'{data.seq_len} tokens, {full:.1%} full, {count / len(packed):.2f} a sequence'
    )
    if chosen.cut or chosen.left_out:
      line += (
        f'; data.too_long={data.too_long}: {chosen.cut:,} are cut, {chosen.left_out:,} left out'
      )
    told.append(line)
  return told
