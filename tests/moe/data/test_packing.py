import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe.data import packing

BOS, EOS = 1, 2
DOCUMENTS = st.lists(st.integers(1, 40), min_size=1, max_size=8)  # lengths


def numbered(lengths):
  """Returns documents whose tokens are all different, from 10 up."""
  ends = np.cumsum(lengths) + 10
  return [np.arange(end - length, end) for end, length in zip(ends, lengths)]


def slow_rows(documents, seq_len, reset):
  """Returns each row's lists (token, target, position, segment, weight), made token by token."""
  stream = [(token, number) for number, doc in enumerate(documents) for token in [BOS, *doc, EOS]]
  rows, row, previous = [], [], None
  for (token, number), (target, next_number) in itertools.pairwise(stream):
    if not row or (reset and number != previous):
      position, segment = 0, row[-1][3] + 1 if row else 1
    else:
      position, segment = row[-1][2] + 1, row[-1][3]
    previous = number
    row.append((int(token), int(target), position, segment, float(number == next_number)))
    if len(row) == seq_len:
      rows.append(row)
      row = []
  return rows + [row + [(0, 0, 0, 0, 0.0)] * (seq_len - len(row))] if row else rows


@settings(deadline=None)
@given(DOCUMENTS, st.integers(1, 30), st.booleans())
def test_training_rows_against_a_slow_loop(lengths, seq_len, reset):
  documents = numbered(lengths)
  stream = np.concatenate([[BOS, *doc, EOS] for doc in documents])
  starts = stream == BOS
  rows = [
    packing.training_row(
      stream[at : at + seq_len + 1], starts[at : at + seq_len + 1], seq_len, reset
    )
    for at in range(0, len(stream) - 1, seq_len)
  ]
  assert [[tuple(cell) for cell in zip(*row[:5])] for row in rows] == slow_rows(
    documents, seq_len, reset
  )
  scored = np.concatenate([row.targets_BL[row.weights_BL > 0] for row in rows])
  np.testing.assert_array_equal(scored, stream[~starts])  # every token once, in order; no BOS


@settings(deadline=None)
@given(DOCUMENTS, st.integers(1, 30), st.floats(0, 0.99))
def test_windows_score_every_token_once(lengths, seq_len, context):
  for document in numbered(lengths):
    stream = np.array([BOS, *document, EOS])
    scored = []
    for number, window in enumerate(packing.windows(stream, seq_len, context)):
      assert len(window.tokens_N) == len(window.targets_N) <= seq_len
      assert window.first_scored == (min(int(context * seq_len), seq_len - 1) if number else 0)
      begin = int(np.flatnonzero(stream == window.tokens_N[0])[0])
      np.testing.assert_array_equal(
        window.targets_N, stream[begin + 1 : begin + 1 + len(window.targets_N)]
      )
      scored += list(window.targets_N[window.first_scored :])
    assert scored == list(stream[1:])


@settings(deadline=None)
@given(DOCUMENTS, st.integers(1, 30), st.integers(1, 4), st.integers(1, 3))
def test_packed_windows_keep_documents_apart(lengths, seq_len, open_rows, batch_size):
  documents = numbered(lengths)
  stream = (
    w for doc in documents for w in packing.windows(np.array([BOS, *doc, EOS]), seq_len, 0.5)
  )
  batches = list(packing.batch_rows(packing.pack_windows(stream, seq_len, open_rows), batch_size))
  owner = {int(token): number for number, doc in enumerate(documents) for token in doc}
  scored = []
  for batch in batches:
    assert batch.tokens_BL.shape == (batch_size, seq_len)
    for row in map(packing.Batch, *batch[:5]):
      for segment in range(1, row.segment_ids_BL.max() + 1):
        here = np.flatnonzero(row.segment_ids_BL == segment)
        np.testing.assert_array_equal(here, np.arange(here[0], here[-1] + 1))
        np.testing.assert_array_equal(row.positions_BL[here], np.arange(len(here)))
        tokens = {*row.tokens_BL[here].tolist(), *row.targets_BL[here].tolist()} - {BOS, EOS}
        assert len({owner[token] for token in tokens}) <= 1
        np.testing.assert_array_equal(row.tokens_BL[here][1:], row.targets_BL[here][:-1])
      assert not row.weights_BL[row.segment_ids_BL == 0].any()
      scored += row.targets_BL[row.weights_BL > 0].tolist()
  assert sorted(scored) == sorted(
    [EOS] * len(documents) + [int(token) for doc in documents for token in doc]
  )


def test_a_row_by_hand():
  row = packing.training_row(
    np.array([7, 2, 1, 8, 9, 2]), np.array([0, 0, 1, 0, 0, 0], bool), 6, reset=True
  )
  assert row.tokens_BL.tolist() == [7, 2, 1, 8, 9, 0]
  assert row.targets_BL.tolist() == [2, 1, 8, 9, 2, 0]
  assert row.segment_ids_BL.tolist() == [1, 1, 2, 2, 2, 0]
  assert row.positions_BL.tolist() == [0, 1, 0, 1, 2, 0]
  assert row.weights_BL.tolist() == [1, 0, 1, 1, 1, 0]
  assert [field.dtype for field in row[:5]] == [np.int32] * 4 + [np.float32]


@pytest.mark.parametrize('rows', [1, 3, 4])
def test_last_batch_is_padded(rows):
  full = packing.training_row(np.arange(5), np.zeros(5, bool), 4, reset=True)
  (batch,) = packing.batch_rows([full] * rows, 4)
  assert (batch.segment_ids_BL > 0).all(axis=1).tolist() == [True] * rows + [False] * (4 - rows)
