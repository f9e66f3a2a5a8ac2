"""Token documents → rows of a batch. NumPy only; every function is pure.

B rows, L tokens a row, J domains, N tokens of a stretch of the stream. A document's stream is
BOS t1 … tn EOS; every token of it but BOS is a target once.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeVar

import numpy as np

Item = TypeVar('Item')
PAD_ID = 0  # fills what segment 0 and weight 0 already mark as padding; never read as text


class Batch(NamedTuple):
  """What a step or an evaluation sees. A single row has the same fields without B."""

  tokens_BL: np.ndarray  # int32, inputs
  targets_BL: np.ndarray  # int32, the token after each input
  positions_BL: np.ndarray  # int32, from 0 in each segment
  segment_ids_BL: np.ndarray  # int32, documents of a row counted from 1; 0: padding
  weights_BL: np.ndarray  # float32, 1 where the target is to be scored, else 0
  domains_BJ: np.ndarray | None = None  # float32, 1 at the row's domain, else 0; None: not told


class Window(NamedTuple):
  """A stretch of one held-out document that is scored together."""

  tokens_N: np.ndarray  # N inputs
  targets_N: np.ndarray
  first_scored: int  # targets before this index are context: an earlier window scored them
  is_scored_N: np.ndarray | None = None  # bool, of the targets; None: all


def filled_up(count: int) -> int:
  """The smallest power of two that is not below `count`: batches padded to such sizes need few
  compiled programs.
  """
  return 1 << (count - 1).bit_length()


def empty_rows(*shape: int) -> Batch:
  """Padding only, of `shape` (…, L)."""
  tokens = np.full(shape, PAD_ID, np.int32)
  zeros = lambda: np.zeros(shape, np.int32)
  return Batch(tokens, tokens.copy(), zeros(), zeros(), np.zeros(shape, np.float32))


def stack_rows(rows: list[Batch]) -> Batch:
  """Rows (L,) → batch (B, L)."""
  return Batch(*(None if field[0] is None else np.stack(field) for field in zip(*rows)))


def training_row(tokens_N: np.ndarray, starts_N: np.ndarray, seq_len: int, reset: bool) -> Batch:
  """A stretch of the stream of 2 ≤ N ≤ L+1 tokens as one row:
  inputs are all but the last, targets all but the first.

  Args:
    tokens_N: integer tokens.
    starts_N: bool, True at the BOS of each document.
    seq_len: L. A shorter stretch (the last of an epoch) is padded.
    reset: segments and positions restart at each document. Without it the row is one segment.
      Either way no BOS is scored: after the end of a document, nothing tells which one comes next.
  """
  row, count = empty_rows(seq_len), len(tokens_N) - 1
  row.tokens_BL[:count] = tokens_N[:-1]
  row.targets_BL[:count] = tokens_N[1:]
  row.weights_BL[:count] = ~starts_N[1:]
  index_N, starts_N = np.arange(count), starts_N[:-1]
  if reset:
    row.segment_ids_BL[:count] = np.cumsum(starts_N) + (not starts_N[0])
    row.positions_BL[:count] = index_N - np.maximum.accumulate(np.where(starts_N, index_N, 0))
  else:
    row.segment_ids_BL[:count] = 1
    row.positions_BL[:count] = index_N
  return row


def windows(
  document_N: np.ndarray, seq_len: int, context: float, is_scored_N: np.ndarray | None = None
) -> Iterator[Window]:
  """Cuts BOS t1 … tn EOS into windows of at most L inputs that together score every target once.

  After the first, a window opens with `context`·L tokens that an earlier one scored, so that only
  the document's first tokens are predicted from little context.
  `is_scored_N`: which tokens of the document are scored at all; windows without any are left out.
  """
  overlap = min(int(context * seq_len), seq_len - 1)
  begin, first_scored = 0, 0
  while True:
    end = min(begin + seq_len, len(document_N) - 1)
    targets = slice(begin + 1, end + 1)
    scored = None if is_scored_N is None else is_scored_N[targets]
    if scored is None or scored[first_scored:].any():
      yield Window(document_N[begin:end], document_N[targets], first_scored, scored)
    if end == len(document_N) - 1:
      return
    begin, first_scored = end - overlap, overlap


def pack_windows(stream: Iterable[Window], seq_len: int, open_rows: int) -> Iterator[Batch]:
  """Windows → rows, by `first_fit`.

  Each window is a segment of its own even when training joins documents: which windows share a row
  is an accident of packing, and a document's score must not depend on its neighbours.
  """
  size = lambda window: len(window.tokens_N)
  for members in first_fit(stream, size, seq_len, open_rows):
    yield _row_of_windows(members, seq_len)


def first_fit(
  stream: Iterable[Item], size: Callable[[Item], int], seq_len: int, open_rows: int
) -> Iterator[list[Item]]:
  """The items that share each row of `seq_len` tokens: first fit over `open_rows` unfinished rows;
  when none has room, the fullest is emitted.
  """
  unfinished: list[tuple[int, list[Item]]] = []  # (tokens used, members)
  for item in stream:
    place = next(
      (i for i, (used, _) in enumerate(unfinished) if used + size(item) <= seq_len), None
    )
    if place is None:
      if len(unfinished) == open_rows:
        fullest = max(range(open_rows), key=lambda i: unfinished[i][0])
        yield unfinished.pop(fullest)[1]
      unfinished.append((size(item), [item]))
    else:
      used, members = unfinished[place]
      unfinished[place] = (used + size(item), [*members, item])
  for _, members in unfinished:
    yield members


def batch_rows(rows: Iterable[Batch], batch_size: int) -> Iterator[Batch]:
  """Rows → batches of exactly `batch_size`; the last is filled with padding rows."""
  pending: list[Batch] = []
  for row in rows:
    pending.append(row)
    if len(pending) == batch_size:
      yield stack_rows(pending)
      pending = []
  if pending:
    padding = empty_rows(len(pending[0].tokens_BL))
    yield stack_rows(pending + [padding] * (batch_size - len(pending)))


def _row_of_windows(members: list[Window], seq_len: int) -> Batch:
  row, at = empty_rows(seq_len), 0
  for number, window in enumerate(members, start=1):
    here = slice(at, at + len(window.tokens_N))
    row.tokens_BL[here] = window.tokens_N
    row.targets_BL[here] = window.targets_N
    row.positions_BL[here] = np.arange(len(window.tokens_N))
    row.segment_ids_BL[here] = number
    scored = 1 if window.is_scored_N is None else window.is_scored_N[window.first_scored :]
    row.weights_BL[at + window.first_scored : here.stop] = scored
    at = here.stop
  return row
