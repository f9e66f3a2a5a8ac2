"""Packing conversations into rows: best fit agrees with a slow search; every epoch is complete,
also when resumed and when divided by processes.
"""

import dataclasses
import itertools
import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe.data import batches as data_batches
from moe.data.chat import Message, open_template, packing
from moe.data.chat.conversations import from_text
from moe.data.chat.packing import ConversationRows, best_fit
from moe.data.corpus import documents
from moe.data.documents import Documents
from moe.data.prepare import prepare
from moe.errors import UserError
from tests.moe.data.chat.helpers import chat_config, write_chats
from tests.moe.data.test_pipeline import assert_same, changed, take


@pytest.fixture(scope='module')
def sources(tmp_path_factory):
  return write_chats(tmp_path_factory.mktemp('chats'))


@pytest.fixture(scope='module')
def config(sources):
  return chat_config(sources=sources)


@pytest.fixture(scope='module')
def prepared(config, tmp_path_factory):
  return prepare(config, tmp_path_factory.mktemp('prepared') / 'data')


def slow_best_fit(sizes, room, window):
  rows = []
  for begin in range(0, len(sizes), window):
    mine = []
    for index in range(begin, min(begin + window, len(sizes))):
      left = lambda row: room - sum(sizes[i] for i in row)
      fits = [row for row in mine if left(row) >= sizes[index]]
      if not fits:
        mine.append([])
        fits = [mine[-1]]
      least = min(map(left, fits))
      # Of rows with the same room left, take the one that reached it last.
      [row for row in fits if left(row) == least][-1].append(index)
    rows += mine
  return rows


@given(
  st.lists(st.integers(1, 20), min_size=1, max_size=40), st.integers(20, 40), st.integers(3, 50)
)
def test_best_fit_against_a_slow_search(sizes, room, window):
  rows, slow = best_fit(sizes, room, window), slow_best_fit(sizes, room, window)
  assert sorted(itertools.chain(*rows)) == list(range(len(sizes)))
  filled = lambda rows: [sum(sizes[i] for i in row) for row in rows]
  assert max(filled(rows)) <= room
  # Rows with the same room left may be swapped.
  assert sorted(filled(rows)) == sorted(filled(slow))


@pytest.mark.parametrize(
  'mean, spread, room', [(500, 1.0, 4096), (1200, 0.8, 4096), (250, 1.2, 2048)]
)
def test_rows_are_full_on_lengths_as_chats_have(mean, spread, room):
  """The lengths are lognormal, roughly like those of public chats."""
  drawn = np.random.default_rng(0).lognormal(np.log(mean) - spread**2 / 2, spread, 20_000)
  sizes = np.clip(drawn.astype(int), 8, room).tolist()
  rows = best_fit(sizes, room)
  assert sum(sizes) / (len(rows) * room) >= 0.95
  counts = np.array([len(row) for row in rows])
  counts = np.random.default_rng(1).permutation(counts)[: len(counts) // 128 * 128]
  per_step = counts.reshape(-1, 128).sum(axis=1)
  assert per_step.std() / per_step.mean() < 0.06


def truth(prepared, config, domain):
  """Returns {tokens: learnt} for a domain's training conversations, from the files themselves."""
  template, found = open_template(config.data.chat_template, prepared.tokenizer), {}
  for document in documents(config.data):
    if document.domain == domain and not document.held_out:
      tokens, learnt = [], []
      for said, is_learnt in joined(template.parts(from_text(document.text))):
        ids = [said] if isinstance(said, int) else prepared.tokenizer.encode(said)
        tokens += ids
        learnt += [is_learnt] * len(ids)
      found[tuple(tokens)] = learnt
  return found


def joined(parts):
  """Joins adjacent texts that are not learnt, such as `User: …` and `Assistant:`, into one."""
  out = []
  for said, learnt in parts:
    if (
      out
      and not learnt
      and not out[-1][1]
      and isinstance(said, str)
      and isinstance(out[-1][0], str)
    ):
      out[-1] = (out[-1][0] + said, False)
    else:
      out.append((said, learnt))
  return out


def segments(batch):
  """Yields (tokens with the last target, weights, positions) for every segment of a batch."""
  for row in map(data_batches.Batch._make, zip(*batch)):
    for number in range(1, row.segment_ids_BL.max() + 1):
      here = np.flatnonzero(row.segment_ids_BL == number)
      assert (np.diff(here) == 1).all()
      assert (row.tokens_BL[here][1:] == row.targets_BL[here][:-1]).all()
      yield (
        tuple([*row.tokens_BL[here].tolist(), int(row.targets_BL[here[-1]])]),
        row.weights_BL[here].tolist(),
        row.positions_BL[here].tolist(),
      )
    assert not row.weights_BL[row.segment_ids_BL == 0].any()


def rows_of(prepared, config, domain, begin=0, epochs=1):
  rows = ConversationRows(prepared, domain, config.data)
  counts = [len(rows.epoch(number)) for number in range(begin + epochs)]
  first = sum(counts[:begin])
  return [rows[number] for number in range(first, sum(counts))]


@pytest.mark.parametrize('learn_from', ['assistant', 'all'])
@pytest.mark.parametrize('too_long', ['cut', 'drop'])
@pytest.mark.parametrize('domain', ['a', 'b'])
def test_an_epoch_has_every_conversation_once(prepared, config, domain, too_long, learn_from):
  config = changed(config, too_long=too_long, learn_from=learn_from)
  length, wanted, long = config.data.seq_len, Counter(), 0
  for tokens, learnt in truth(prepared, config, domain).items():
    long += len(tokens) > length + 1
    if len(tokens) > length + 1 and too_long == 'drop':
      continue
    weights = [float(x or learn_from == 'all') for x in learnt[1 : length + 1]]
    if any(weights):
      wanted[tokens[: length + 1], tuple(weights)] += 1
  assert (long > 5) == (domain == 'a')
  orders = []
  for epoch in (0, 1):
    batch = data_batches.packing.stack_rows(rows_of(prepared, config, domain, epoch))
    assert {tuple(x) for x in batch.domains_BJ.tolist()} == {(domain == 'a', domain == 'b')}
    found = list(segments(batch))
    assert Counter((tokens, tuple(weights)) for tokens, weights, _ in found) == wanted
    assert all(positions == list(range(len(positions))) for *_, positions in found)
    orders.append([tokens for tokens, *_ in found])
  assert orders[0] != orders[1]


def test_restart_from_any_state_and_divided_by_processes(prepared, config):
  iterator, states, batches = data_batches.train_iterator(prepared, config), [], []
  # Several epochs of both domains.
  for _ in range(60):
    states.append(json.loads(json.dumps(iterator.get_state())))
    batches.append(next(iterator))
  for step in (0, 1, 37, 59):
    restarted = data_batches.train_iterator(prepared, changed(config, num_threads=4, prefetch=3))
    next(restarted)
    restarted.set_state(states[step])
    assert restarted.get_state() == states[step]
    assert_same(take(restarted, 60 - step), batches[step:])
  for count in (2, 4):
    parts = [
      take(data_batches.train_iterator(prepared, config, i, count), 20) for i in range(count)
    ]
    whole = [data_batches.Batch(*map(np.concatenate, zip(*step))) for step in zip(*parts)]
    assert_same(whole, batches[:20])
  other = take(data_batches.train_iterator(prepared, changed(config, seed=1)), 3)
  assert any((a.tokens_BL != b.tokens_BL).any() for a, b in zip(other, batches))
  # The domains' weights are 3 and 1.
  of_a = sum(batch.domains_BJ[:, 0].sum() for batch in batches)
  assert abs(of_a - 0.75 * 4 * 60) < 2


@pytest.mark.parametrize('domain', ['a', 'b'])
def test_evaluation_scores_every_held_out_reply_once(prepared, config, domain):
  config = changed(config, 'evaluation', context=0.5)
  scored, template = Counter(), open_template('deepseek', prepared.tokenizer)
  for batch in data_batches.evaluation_batches(prepared, domain, config):
    scored.update(batch.targets_BL[batch.weights_BL > 0].tolist())
  wanted, text = Counter(), ''
  for document in documents(config.data):
    if document.domain == domain and document.held_out:
      messages = [Message(*each) for each in from_text(document.text)]
      for said, learnt in template.parts(messages):
        if learnt:
          wanted.update([said] if isinstance(said, int) else prepared.tokenizer.encode(said))
          text += said if isinstance(said, str) else ''
  assert scored == wanted
  assert scored.total() == data_batches.held_out_targets(prepared, domain)
  assert text.encode() == data_batches.held_out_text(prepared, domain)
  assert len(text.encode()) == data_batches.held_out_bytes(prepared, domain)


def test_what_is_told(config, prepared, capsys):
  prepare(changed(config, too_long='drop'), prepared.directory)
  told = capsys.readouterr().err.splitlines()
  rows = ConversationRows(prepared, 'a', changed(config, too_long='drop').data)
  count, packed = len(rows.fitting.numbers_C), len(rows.epoch(0))
  full = rows.fitting.sizes_C.sum() / (64 * packed)
  assert told[0] == (
    f"domain 'a': {count} conversations in {packed} sequences of 64 tokens, {full:.1%} full, "
    f'{count / packed:.2f} a sequence; data.too_long=drop: 0 are cut, {49 - count} left out'
  )
  assert len(told) == 2 and 'too_long' not in told[1]


@pytest.mark.parametrize(
  'change, words',
  [
    ({'seq_len': 4}, "data.seq_len=4 is too short for domain 'a': no conversation has anything to"),
    ({'seq_len': 4, 'too_long': 'drop'}, r'the shortest has \d+ tokens'),
    ({'chat_template': 'plain'}, 'data.chat_template: deepseek there, plain now'),
    ({'format': 'text'}, 'data.format: chat there, None now'),
  ],
)
def test_data_that_cannot_be_used(prepared, config, change, words):
  with pytest.raises(UserError, match=words):
    prepare(changed(config, **change), prepared.directory)


def test_same_conversations_same_files(prepared, config, tmp_path):
  prepare(config, tmp_path / 'again')
  for path in prepared.directory.iterdir():
    assert (tmp_path / 'again' / path.name).read_bytes() == path.read_bytes(), path.name


def test_a_record_without_its_mask_is_damaged(prepared):
  entry = prepared.totals('train', 'a')
  text = {name: value for name, value in entry.items() if name != 'learnt'}
  documents = Documents(prepared.directory, 'train-a', text, np.dtype('uint16'))
  with pytest.raises(UserError, match=r'train-a-00000\.array_record is missing, truncated or'):
    documents.record(0)


def test_what_a_start_asks_of_an_epoch_is_of_one_packing(prepared, config, monkeypatch):
  packed = []
  monkeypatch.setattr(
    packing, 'best_fit', lambda sizes, room: packed.append(sizes) or best_fit(sizes, room)
  )
  opened = prepare(config, prepared.directory)
  data_batches.epochs_per_step(opened, config)
  next(data_batches.train_iterator(opened, config))
  assert len(packed) >= 2 and len(set(map(tuple, packed))) == len(packed)


def test_a_seed_decides_the_epochs(prepared, config):
  of_seed = lambda seed: ConversationRows(
    prepared, 'a', dataclasses.replace(config.data, seed=seed)
  ).epoch(0)
  assert of_seed(0) == of_seed(0) != of_seed(1)
