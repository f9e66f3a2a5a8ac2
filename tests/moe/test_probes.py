"""Probes of a trained model: rows that ask its attention to copy and look up, and one expert in
another's place.
"""

import types

import jax
import numpy as np
import pytest

from moe.analysis import probes, redundancy
from moe.errors import UserError
from moe.evaluate import Evaluator
from tests.small import packed_batch, small_config, small_params

PIECES = np.arange(5, 30)


def test_the_second_stretch_is_the_first():
  tokens_BM, is_scored_BL = probes.copying_rows(np.random.default_rng(0), PIECES, 4, 13)
  assert tokens_BM.shape == (4, 12) and is_scored_BL.shape == (4, 11)
  for row, scored in zip(tokens_BM, is_scored_BL):
    assert (row[:6] == row[6:]).all() and set(row) <= set(PIECES)
    # Each scored target also follows an earlier copy of its input.
    for place in np.flatnonzero(scored):
      assert (row[place], row[place + 1]) == (row[place - 6], row[place - 5])
    assert scored.sum() == scored[::-1][:6].sum() == 5 and not scored[:6].any()


def test_a_lookup_has_one_answer():
  tokens_BM, is_scored_BL = probes.lookup_rows(np.random.default_rng(0), PIECES, 20, 5, 16)
  assert tokens_BM.shape == (20, 12) and (is_scored_BL.sum(axis=0) == [0] * 10 + [20]).all()
  asked = []
  for row in tokens_BM:
    *pairs, key, value = row
    assert len(set(pairs)) == 10 and dict(zip(pairs[::2], pairs[1::2]))[key] == value
    asked.append(pairs.index(key) // 2)
  assert set(asked) == set(range(5))
  shorter, _ = probes.lookup_rows(np.random.default_rng(0), PIECES, 2, 8, 8)
  assert shorter.shape == (2, 8)  # three pairs fit


def test_a_model_of_nothing_is_at_chance():
  """With all weights 0 the logits are 0: every piece of the vocabulary is equally likely."""
  config = small_config()
  params = jax.tree.map(np.zeros_like, small_params(config))
  is_text = np.arange(config.model.vocab_size) >= 4
  tokenizer = types.SimpleNamespace(is_text=is_text)
  found = probes.losses(config, params, tokenizer, rows=7, pairs=3)
  even = np.log(config.model.vocab_size)
  assert found == pytest.approx((even, even, even, np.log(is_text.sum())))


@pytest.fixture
def batches(monkeypatch):
  """Makes one batch of random ids, given twice, the held-out text of any data."""
  config = small_config()
  batch = packed_batch(config)
  monkeypatch.setattr(redundancy, 'held_out_batches', lambda *_: [('a', batch)] * 2)
  return config, batch


def test_one_expert_in_anothers_place(batches):
  config, batch = batches
  params = small_params(config)
  found = redundancy.measure(config, params, None, pairs=2)
  assert found.experts_NX.shape == found.substituted_NX.shape == (2, 2)
  assert (found.experts_NX != found.others_NX).all()
  for n, x in np.ndindex(2, 2):
    expert, other = found.experts_NX[n, x], found.others_NX[n, x]
    for rise, take in ((found.substituted_NX, other), (found.removed_NX, None)):
      changed = jax.tree.map(np.array, params)
      for w_NEXY in changed['moe_blocks']['moe']['experts'].values():
        w_NEXY[n, expert] = 0 if take is None else w_NEXY[n, take]
      expected = _loss(config, changed, batch) - _loss(config, params, batch)
      assert rise[n, x] == pytest.approx(expected, abs=2e-6)


def _loss(config, params, batch):
  score = Evaluator(config, None)._score
  loss, tokens, *_ = score(params, batch)
  return float(loss) / float(tokens)


def test_a_wide_expert_is_stood_in_for_by_another_wide_one(batches):
  """Both units of a wide expert are replaced. A single wide expert is left out."""
  _, batch = batches
  config = small_config(**{'moe.wide_experts': 2})
  params = small_params(config)
  found = redundancy.measure(config, params, None, pairs=100)
  assert found.experts_NX.shape == (2, 6)
  assert ((found.experts_NX < 2) == (found.others_NX < 2)).all()
  assert (found.experts_NX != found.others_NX).all()
  units = lambda expert: [2 * expert, 2 * expert + 1] if expert < 2 else [expert + 2]
  for n, x in ((0, list(found.experts_NX[0]).index(1)), (1, list(found.experts_NX[1]).index(4))):
    expert, other = int(found.experts_NX[n, x]), int(found.others_NX[n, x])
    for rise, take in ((found.substituted_NX, units(other)), (found.removed_NX, None)):
      changed = jax.tree.map(np.array, params)
      for w_NUXY in changed['moe_blocks']['moe']['experts'].values():
        w_NUXY[n, units(expert)] = 0 if take is None else w_NUXY[n, take]
      expected = _loss(config, changed, batch) - _loss(config, params, batch)
      assert rise[n, x] == pytest.approx(expected, abs=2e-6)
  config = small_config(**{'moe.wide_experts': 1})
  found = redundancy.measure(config, small_params(config), None, pairs=100)
  assert found.experts_NX.shape == (2, 5) and 0 not in found.experts_NX


def test_experts_that_are_alike_stand_in_for_each_other(batches):
  config, _ = batches
  params = small_params(config)
  for w_NEXY in params['moe_blocks']['moe']['experts'].values():
    w_NEXY[:] = w_NEXY[:, :1]
  found = redundancy.measure(config, params, None, pairs=100)
  assert found.experts_NX.shape == (2, 6)  # all there are
  assert (found.substituted_NX == 0).all() and (found.removed_NX != 0).any()


def test_a_model_with_nothing_to_replace_is_refused(batches):
  with pytest.raises(UserError, match='no routed experts'):
    none = {'moe.num_experts': 0, 'moe.experts_per_token': 0, 'moe.expert_balance_weight': 0.0}
    redundancy.measure(small_config(**none), {}, None)
  config = small_config(**{'moe.num_experts': 1, 'moe.experts_per_token': 1})
  with pytest.raises(UserError, match='num_experts=1: no expert has another'):
    redundancy.measure(config, {}, None)


def test_the_measures_of_sweeps_are_those_that_studies_may_name():
  from experiments.studies.common import MEASURES
  from experiments.sweeps.measures import MEASURE

  assert tuple(MEASURE) == MEASURES
