"""Probes of a trained model: rows that ask its attention to copy and look up, and one expert in
another's place.
"""

import functools

import jax
import numpy as np
import pytest

from moe import analysis
from moe.analysis import TOKEN_CLASSES, Intervention, gates, probes, redundancy
from moe.analysis.interventions import shared_gates
from moe.errors import UserError
from moe.evaluate import Evaluator
from tests.small import HeldOut, packed_batch, small_config, small_params


def test_stretches_are_of_as_many_documents_as_there_are():
  texts = [list(range(10, 17)), [20, 21], [30, 31, 32], [40, 41, 42, 43]]
  drawn = set()
  for seed in range(20):
    generator = lambda: np.random.default_rng(seed)  # noqa: B023
    found_BS, document_B = probes.stretches(HeldOut(a=texts), 'a', 3, 9, generator())
    assert found_BS.dtype == np.int32 and sorted(found_BS[:, 0] // 10) == [1, 1, 3, 4]
    assert (np.diff(found_BS) == 1).all()  # text in its order, without BOS and EOS
    assert sorted(document_B[:3]) == [0, 1, 2] and found_BS[3, 0] >= 13  # each before a second one
    assert (found_BS[:, 0] // 10 == found_BS[:3, 0][document_B] // 10).all()
    drawn |= set(found_BS[:, 0])
    assert len(probes.stretches(HeldOut(a=texts), 'a', 3, 2, generator())[0]) == 2
  assert drawn == {10, 11, 13, 14, 30, 40, 41}


def test_the_other_text_is_of_another_document():
  document_B = np.array([0, 1, 2, 0, 0, 0])
  found = np.array([probes.of_another(document_B, np.random.default_rng(n)) for n in range(50)])
  assert (document_B[found] != document_B).all()
  assert set(found[:, 0]) == {1, 2} and set(found[:, 1]) == {0, 2, 3, 4, 5}


def test_what_is_looked_up_has_one_answer():
  stretch_BS = np.array([[5, 6, 5, 7, 6, 8]] * 40 + [[5, 5, 5, 6, 6, 6]])
  found_B = probes.places_to_look_up(stretch_BS, np.random.default_rng(0))
  assert set(found_B[:-1]) == {3} and 0 <= found_B[-1] < 5
  other_BS = np.array([[5, 6, 7, 8]] * 40)
  found_B = probes.places_to_look_up(other_BS, np.random.default_rng(0))
  assert set(found_B) == {0, 1, 2}  # not the last, which nothing follows


def test_what_is_scored_after_what(monkeypatch):
  """Every row that is scored, by a stand-in for the model that keeps what it is asked."""
  asked, config = [], small_config(**{'data.batch_size': 3, 'data.seq_len': 9})

  def keep(config, params, batch):
    jax.debug.callback(lambda *arrays: asked.append([np.array(a) for a in arrays]), *batch[:5])
    return batch.weights_BL.sum() * 2, batch.weights_BL.sum()

  monkeypatch.setattr(probes, 'summed_loss', keep)
  texts = {'a': [[10, 11, 12, 13], [20, 21, 22, 23], [14] * 3], 'b': [[30, 31, 32, 33]] * 2}
  assert probes.losses(config, {}, HeldOut(**texts, c=[[40, 41, 42, 43]])) == (2.0, 2.0, 2.0, 2.0)
  rows = []
  for tokens_BL, targets_BL, positions_BL, segment_ids_BL, weights_BL in asked:
    for b in np.flatnonzero(segment_ids_BL.any(axis=1)):
      used = segment_ids_BL[b].sum()
      assert (positions_BL[b, :used] == np.arange(used)).all() and used <= 7
      assert (tokens_BL[b, 1:used] == targets_BL[b, : used - 1]).all()
      rows.append(([*tokens_BL[b, :used], targets_BL[b, used - 1]], weights_BL[b, :used]))
      assert not weights_BL[b, used:].any()
  same, other, found, not_found = (rows[n : n + 4] for n in range(0, 16, 4))
  for copied, changed, lookup, changed_lookup in zip(same, other, found, not_found):
    assert copied[0][:4] == copied[0][4:] == changed[0][4:] and (
      list(copied[1]) == list(changed[1]) == [0, 0, 0, 0, 1, 1, 1]
    )
    assert lookup[0][:4] == copied[0][:4] and changed_lookup[0][:4] == changed[0][:4]
    assert lookup[0][4:] == changed_lookup[0][4:] and list(lookup[1]) == [0, 0, 0, 0, 1]
    place = lookup[0].index(lookup[0][4])
    assert lookup[0][place : place + 2] == lookup[0][4:]
    # Of the same domain, and another document.
    assert (copied[0][0] // 30, copied[0][0] == changed[0][0]) in (
      (changed[0][0] // 30, False),
      (1, True),  # of b, whose documents are alike
    )


def test_a_model_of_nothing_recalls_nothing():
  """With all weights 0 the logits are 0: every piece of the vocabulary is equally likely."""
  config = small_config()
  params = jax.tree.map(np.zeros_like, small_params(config))
  texts = np.random.default_rng(0).integers(4, config.model.vocab_size, (7, config.data.seq_len))
  found = probes.losses(config, params, HeldOut(a=texts), rows=5)
  assert found == pytest.approx([np.log(config.model.vocab_size)] * 4)


@pytest.mark.parametrize('texts', [[[5] * 99], [[5] * 2] * 9, []], ids=['one', 'short', 'none'])
def test_text_too_short_to_copy_is_refused(texts):
  with pytest.raises(UserError, match='no domain has two held-out documents'):
    probes.losses(small_config(), {}, HeldOut(a=texts))
  with pytest.raises(UserError, match='no domain has two held-out documents'):
    probes.losses(small_config(**{'data.seq_len': 1}), {}, HeldOut(a=[[5] * 99] * 3))


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


def test_gates_of_shared_experts_by_class_of_token():
  config = small_config(**{'moe.shared_gate': True})
  params, batch = small_params(config), packed_batch(config)
  gate_NBL = np.array(jax.jit(functools.partial(shared_gates, config))(params, batch))
  telemetry = analysis.forward(config, params, batch, Intervention())[1].telemetry
  is_token_BL = batch.segment_ids_BL > 0
  np.testing.assert_allclose(
    gate_NBL[:, is_token_BL].mean(axis=1), telemetry['shared_gate'].value, rtol=1e-5
  )
  class_V = np.arange(config.model.vocab_size) % len(TOKEN_CLASSES)
  counts_NCH, sum_NC = gates.histogram(gate_NBL, batch, class_V)
  is_scored_BL = batch.weights_BL > 0
  for n, c in np.ndindex(*sum_NC.shape):
    of_class = gate_NBL[n][is_scored_BL & (class_V[batch.tokens_BL] == c)]
    assert (counts_NCH[n, c] == np.histogram(of_class, gates.BINS, (0, 1))[0]).all()
    assert sum_NC[n, c] == pytest.approx(of_class.sum(), rel=1e-5)
  found = gates.Openness(np.array(counts_NCH), np.array(sum_NC))
  np.testing.assert_allclose(
    found.share_below(0.5), (gate_NBL[:, is_scored_BL] < 0.5).mean(axis=1), rtol=1e-6
  )
  empty = gates.Openness(np.zeros((1, 2, gates.BINS), int), np.zeros((1, 2)))
  assert np.isnan(empty.mean_NC).all()
  with pytest.raises(UserError, match='its shared experts have no gate'):
    shared_gates(small_config(), params, batch)
