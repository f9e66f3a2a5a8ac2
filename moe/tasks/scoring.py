"""Log-probabilities of continuations of contexts, in few compiled shapes.

A context that several pairs share is computed once. A row holds its continuations, each a segment
that goes on from the context's keys and values. All other pairs fill rows, each as one segment:
the context, then its continuation. Only tokens that are scored reach the output head.

B rows, L tokens a row, M of them scored, S tokens of a shared context, D model width.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from moe.data import packing
from moe.data.packing import Batch
from moe.inspection.programs import Model
from moe.losses.cross_entropy import token_scores
from moe.model import Transformer, shared_context
from moe.parallel.feeding import batch_parts, place_whole
from moe.parallel.sharding import replicated

# Contexts of up to so many tokens are computed again: sharing them would take longer.
_LEAST_SHARED = 16
# The least sizes that batches are padded to: smaller ones save less time than compiling takes.
_LEAST_ROW, _LEAST = 256, 32
_OPEN_ROWS = 16


class Pair(NamedTuple):
  """What is asked: token ids, at most data.seq_len + 1 of both together."""

  context: Sequence[int]  # at least one
  continuation: Sequence[int]


class Score(NamedTuple):
  """The score of a continuation after its context."""

  log_probability: float  # natural, of all its tokens; 0 without tokens
  is_greedy: bool  # at every token of it, no other token was likelier


class Packed(NamedTuple):
  """Rows of segments, some of whose tokens are scored."""

  batch: Batch
  at_BM: np.ndarray  # int32, the input in its row whose output predicts the target
  targets_BM: np.ndarray  # int32


class Shared(NamedTuple):
  """One context a row, and a row of its continuations, all of whose tokens are scored."""

  context: Batch
  batch: Batch


class _Branch(NamedTuple):
  """A context and the continuations that share its keys and values."""

  context: Sequence[int]
  numbers: list[int]  # of the pairs
  continuations: list[Sequence[int]]
  length: int  # of all continuations together

  @property
  def prefix(self) -> int:
    return len(self.context) - 1


def score(model: Model, pairs: Sequence[Pair], tokens: int) -> list[Score]:
  """The `Score` of every pair. About `tokens` tokens are computed at once: this changes only time
  and memory.
  """
  mesh = model.mesh if model.mesh is not None and model.mesh.size > 1 else None
  parts = batch_parts(mesh.shape) if mesh else 1
  singles, branches = _divided(pairs)
  length = model.model.config.data.seq_len
  asked = [
    *_packed_rows(singles, pairs, length, tokens, parts),
    *_shared_rows(branches, tokens, parts),
  ]
  programs = _programs(model.model, mesh)
  results = []
  for _, rows in asked:
    # Nothing in this loop waits for the device.
    placed = place_whole(rows, mesh)
    with model.context():
      results.append(programs[type(rows)](model.params, placed))
  sums, greedy = np.zeros(len(pairs)), np.ones(len(pairs), bool)
  for (places, _), found in zip(asked, jax.device_get(results), strict=True):
    for number, row, begin, count in places:
      here = row, slice(begin, begin + count)
      sums[number] = -found[0][here].sum(dtype=np.float64)
      greedy[number] = found[1][here].all()
  return [Score(float(total), bool(each)) for total, each in zip(sums, greedy, strict=True)]


def _divided(pairs):
  """(numbers of the pairs that share no context, a `_Branch` for each context that is shared)."""
  by_context: dict[tuple, list[int]] = {}
  for number, pair in enumerate(pairs):
    if len(pair.continuation):
      by_context.setdefault(tuple(pair.context), []).append(number)
  singles, branches = [], []
  for context, numbers in by_context.items():
    if len(numbers) == 1 or len(context) <= _LEAST_SHARED:
      singles += numbers
      continue
    continuations = [pairs[number].continuation for number in numbers]
    branches.append(_Branch(context, numbers, continuations, sum(map(len, continuations))))
  return singles, branches


def _packed_rows(
  numbers: list[int], pairs: Sequence[Pair], seq_len: int, tokens: int, parts: int
) -> Iterator[tuple[list[tuple[int, int, int, int]], Packed]]:
  """(places, batch), with the place (pair, row, first of its M, how many) of every pair in it."""
  size = lambda number: len(pairs[number].context) + len(pairs[number].continuation) - 1
  by_length: dict[int, list[int]] = {}
  for number in sorted(numbers, key=lambda number: (-size(number), number)):
    length = min(packing.filled_up(max(size(number), _LEAST_ROW)), seq_len)
    by_length.setdefault(length, []).append(number)
  for length, members in by_length.items():
    rows = list(packing.first_fit(members, size, length, _OPEN_ROWS))
    for held in _batches(rows, tokens // length):
      yield _packed_batch(held, pairs, length, _row_count(len(held), tokens // length, parts))


def _packed_batch(held, pairs, length, count):
  batch, places, scored = packing.empty_rows(count, length), [], [[] for _ in range(count)]
  for row, members in enumerate(held):
    begin = 0
    for segment, number in enumerate(members, start=1):
      context, continuation = pairs[number]
      _write(batch, row, begin, [*context, *continuation][:-1], 0, segment)
      first = begin + len(context) - 1
      places.append((number, row, len(scored[row]), len(continuation)))
      scored[row] += zip(range(first, first + len(continuation)), continuation, strict=True)
      begin += len(context) + len(continuation) - 1
  most = min(_filled(max(map(len, scored))), length)
  at_BM, targets_BM = np.zeros((2, count, most), np.int32)
  for row, found in enumerate(scored):
    if found:
      at_BM[row, : len(found)], targets_BM[row, : len(found)] = np.transpose(found)
  return places, Packed(batch, at_BM, targets_BM)


def _shared_rows(
  branches: list[_Branch], tokens: int, parts: int
) -> Iterator[tuple[list[tuple[int, int, int, int]], Shared]]:
  """As `_packed_rows`, for contexts that are shared.

  Batches take the largest first: so too little memory shows at once, and only the last batch is not
  full.
  """
  size = lambda branch: (_filled(branch.prefix), _filled(branch.length))
  left = sorted(branches, key=size, reverse=True)
  while left:
    shared, most = size(left[0])[0], tokens // sum(size(left[0])) or 1
    # A later context may be shorter, but its continuations longer.
    length = max(size(branch)[1] for branch in left[:most])
    most = max(tokens // (shared + length), 1)
    held, left = left[:most], left[most:]
    count = _row_count(len(held), most, parts)
    yield _shared_batch(held, packing.empty_rows(count, shared), packing.empty_rows(count, length))


def _filled(count):
  return packing.filled_up(max(count, _LEAST))


def _shared_batch(held, context, batch):
  places = []
  for row, branch in enumerate(held):
    _write(context, row, 0, branch.context[:-1], 0, 1)
    begin = 0
    for segment, (number, ids) in enumerate(
      zip(branch.numbers, branch.continuations, strict=True), start=1
    ):
      # The context's last token predicts the first of each continuation.
      _write(batch, row, begin, [branch.context[-1], *ids[:-1]], branch.prefix, segment)
      batch.targets_BL[row, begin : begin + len(ids)] = ids
      places.append((number, row, begin, len(ids)))
      begin += len(ids)
  return places, Shared(context, batch)


def _write(batch, row, begin, ids, position, segment):
  """Writes a segment into a row; `position`: that of its first token."""
  here = row, slice(begin, begin + len(ids))
  batch.tokens_BL[here] = ids
  batch.positions_BL[here] = np.arange(position, position + len(ids))
  batch.segment_ids_BL[here] = segment


def _batches(rows, most):
  most = max(most, 1)
  return (rows[begin : begin + most] for begin in range(0, len(rows), most))


def _row_count(count, most, parts):
  """Rows of a batch for `count` of them: one of few sizes, and a multiple of `parts`."""
  count = min(packing.filled_up(count), max(most, 1))
  return count + -count % parts


@functools.lru_cache(maxsize=16)
def _programs(model: Transformer, mesh: Mesh | None) -> dict[type, Callable]:
  """{kind of rows: its program (params, rows) → (losses, is_likeliest)}."""
  keeping = model.clone(probe=model.probe._replace(keys_values=True))
  inputs = lambda batch: (batch.tokens_BL, batch.positions_BL, batch.segment_ids_BL)

  def scores(params, hidden_BMD, targets_BM):
    return token_scores(hidden_BMD, params['head'], targets_BM, model.config.train.loss_chunk)

  def packed(params, rows: Packed):
    hidden_BLD, _, _ = model.apply({'params': params}, *inputs(rows.batch))
    hidden_BMD = jnp.take_along_axis(hidden_BLD, rows.at_BM[:, :, None], axis=1)
    return scores(params, hidden_BMD, rows.targets_BM)

  def shared(params, rows: Shared):
    _, _, kept = keeping.apply({'params': params}, *inputs(rows.context))
    cache = shared_context(kept, rows.context.segment_ids_BL > 0)
    hidden_BLD, _, _ = model.apply({'params': params}, *inputs(rows.batch), cache)
    return scores(params, hidden_BLD, rows.batch.targets_BL)

  jit = functools.partial(jax.jit, out_shardings=replicated(mesh))
  return {Packed: jit(packed), Shared: jit(shared)}
