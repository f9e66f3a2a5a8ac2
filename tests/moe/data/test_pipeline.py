import dataclasses
import json
from collections import Counter

import numpy as np
import pytest

from moe.data import batches as data_batches
from moe.errors import UserError


def changed(config, section='data', **values):
  return dataclasses.replace(
    config, **{section: dataclasses.replace(getattr(config, section), **values)}
  )


def take(iterator, count):
  batches = [next(iterator) for _ in range(count)]
  iterator.close()
  return batches


def assert_same(batches, others):
  assert len(batches) == len(others)
  for batch, other in zip(batches, others):
    for field, same in zip(batch, other):
      np.testing.assert_array_equal(field, same)


def test_threads_and_prefetch_change_nothing(prepared, config):
  wanted = take(data_batches.train_iterator(prepared, config), 40)
  for threads, prefetch in ((1, 1), (5, 30)):
    other = changed(config, num_threads=threads, prefetch=prefetch)
    assert_same(take(data_batches.train_iterator(prepared, other), 40), wanted)
  assert [field.dtype for field in wanted[0]] == [np.int32] * 4 + [np.float32] * 2
  assert [field.shape for field in wanted[0]] == [(4, 32)] * 5 + [(4, 2)]


def test_restart_from_any_state(prepared, config):
  iterator = data_batches.train_iterator(prepared, config)
  states, batches = [], []
  for _ in range(30):
    states.append(json.loads(json.dumps(iterator.get_state())))
    batches.append(next(iterator))
  for step in (0, 1, 13, 29):
    restarted = data_batches.train_iterator(prepared, changed(config, num_threads=4, prefetch=3))
    next(restarted)
    restarted.set_state(states[step])
    assert restarted.get_state() == states[step]
    assert_same(take(restarted, 30 - step), batches[step:])


@pytest.mark.parametrize('count', [2, 4])
def test_processes_together_see_the_same_global_batches(prepared, config, count):
  wanted = take(data_batches.train_iterator(prepared, config), 20)
  parts = [
    take(data_batches.train_iterator(prepared, config, index, count), 20) for index in range(count)
  ]
  joined = [data_batches.Batch(*map(np.concatenate, zip(*step))) for step in zip(*parts)]
  assert_same(joined, wanted)


def test_processes_must_divide_the_batch(prepared, config):
  with pytest.raises(UserError, match=r'data\.batch_size=4 is not divisible by the 3 processes'):
    data_batches.train_iterator(prepared, config, 0, 3)


def identity(row):
  return row.tokens_BL.tobytes() + row.positions_BL.tobytes()


def rows_of(prepared, config, domain):
  """Returns every row of an epoch."""
  rows = data_batches.TrainingRows(prepared, domain, config.data.seq_len, config.data.seed, True)
  return [rows[i] for i in range(len(rows))]


def test_epochs_and_mixing(prepared, config):
  """Each epoch of a domain has each row once, in an order of its own, whatever the other domain
  does meanwhile.
  """
  wanted = {
    domain: Counter(map(identity, rows_of(prepared, config, domain))) for domain in prepared.domains
  }
  assert not wanted['a'].keys() & wanted['b'].keys()
  seen = {'a': [], 'b': []}
  steps = 2 * max(rows.total() for rows in wanted.values())
  for batch in take(data_batches.train_iterator(prepared, config), steps):
    for row in map(data_batches.Batch._make, zip(*batch)):
      key = identity(row)
      domain = 'a' if key in wanted['a'] else 'b'
      assert row.domains_BJ.tolist() == [name == domain for name in prepared.domains]
      seen[domain].append(key)
  assert abs(len(seen['a']) - 0.75 * 4 * steps) < 2  # weights 3 and 1
  for domain, keys in seen.items():
    count = wanted[domain].total()
    orders = [keys[begin : begin + count] for begin in range(0, len(keys) - count + 1, count)]
    assert len(orders) >= 2
    assert all(Counter(order) == wanted[domain] for order in orders)
    assert orders[0] != orders[1]


@pytest.mark.parametrize('domain', ['a', 'b'])
def test_every_token_is_a_target_once_an_epoch(prepared, config, domain):
  rows = rows_of(prepared, config, domain)
  documents, tokenizer = prepared.documents('train', domain), prepared.tokenizer
  scored = np.concatenate([row.targets_BL[row.weights_BL > 0] for row in rows])
  ends = np.flatnonzero(scored == tokenizer.eos_id)
  found = [part[:-1] for part in np.split(scored, ends + 1)[:-1]]
  wanted = [documents.document(i) for i in range(len(documents))]
  assert ends[-1] == len(scored) - 1
  assert Counter(part.tobytes() for part in found) == Counter(
    part.astype(np.int32).tobytes() for part in wanted
  )
  assert [len(part) for part in found] != [len(part) for part in wanted]  # permuted


def test_orders_depend_on_the_seed(prepared, config):
  first = take(data_batches.train_iterator(prepared, config), 3)
  other = take(data_batches.train_iterator(prepared, changed(config, seed=1)), 3)
  assert any((a.tokens_BL != b.tokens_BL).any() for a, b in zip(first, other))


def test_joined_documents(prepared, config):
  reset, joined = (
    take(data_batches.train_iterator(prepared, changed(config, reset_at_documents=value)), 20)
    for value in (True, False)
  )
  assert max(batch.segment_ids_BL.max() for batch in reset) > 1
  for one, other in zip(reset, joined):
    np.testing.assert_array_equal(one.tokens_BL, other.tokens_BL)
    np.testing.assert_array_equal(one.weights_BL, other.weights_BL)
    used = other.segment_ids_BL > 0
    np.testing.assert_array_equal(other.segment_ids_BL, used)
    np.testing.assert_array_equal(other.positions_BL, np.where(used, np.arange(32), 0))


@pytest.mark.parametrize('context', [0.0, 0.5, 0.9])
@pytest.mark.parametrize('domain', ['a', 'b'])
def test_evaluation_scores_every_held_out_token_once(prepared, config, domain, context):
  config = changed(config, 'evaluation', context=context)
  batches = list(data_batches.evaluation_batches(prepared, domain, config))
  documents = prepared.documents('held_out', domain)
  everything = [
    token
    for i in range(len(documents))
    for token in [*documents.document(i), prepared.tokenizer.eos_id]
  ]
  scored = np.concatenate([batch.targets_BL[batch.weights_BL > 0] for batch in batches])
  assert Counter(scored.tolist()) == Counter(map(int, everything))
  decoded = [
    prepared.tokenizer.decode(documents.document(i).tolist()) for i in range(len(documents))
  ]
  text = data_batches.held_out_text(prepared, domain)
  assert ''.join(decoded).encode() == text
  assert (
    len(text) == data_batches.held_out_bytes(prepared, domain) == documents.document_bytes.sum()
  )
  assert {batch.tokens_BL.shape for batch in batches} == {(4, 32)}


def test_fewer_evaluation_batches_are_the_first(prepared, config):
  batches = list(data_batches.evaluation_batches(prepared, 'a', config))
  assert_same(
    list(data_batches.evaluation_batches(prepared, 'a', config, max_batches=2)), batches[:2]
  )
  assert_same(
    list(data_batches.evaluation_batches(prepared, 'a', changed(config, seed=9))), batches
  )


def test_permutation():
  for count in (1, 2, 1000):
    order = data_batches.permutation(count, 5)
    assert sorted(order) == list(range(count))
  # The order is fixed: a run resumed by another version of the code must find its place again.
  assert data_batches.permutation(6, 0).tolist() == [0, 3, 5, 2, 1, 4]
  assert data_batches.permutation(6, 5).tolist() == [4, 5, 3, 1, 0, 2]
  assert data_batches.permutation(1000, 0).tolist() != data_batches.permutation(1000, 1).tolist()
