"""How the domains' scores become one, and the rows of a report."""

import math
import types

import numpy as np
import pytest

from moe import evaluate
from moe.data.packing import Batch
from moe.train_step import forward
from tests.small import packed_batch, small_config, small_params

# By domain: Σ loss and tokens of each batch, held-out targets, held-out bytes.
BATCHES = {'a': [(10.0, 5), (30.0, 5)], 'b': [(4.0, 4), (8.0, 4), (12.0, 4)]}
TARGETS = {'a': 10, 'b': 12}
BYTES = {'a': 40, 'b': 60}


@pytest.fixture
def evaluator(monkeypatch):
  def batches(data, domain, config, max_batches):
    return [Batch(*[scored] * 5) for scored in BATCHES[domain][:max_batches]]

  monkeypatch.setattr(evaluate.data_batches, 'evaluation_batches', batches)
  monkeypatch.setattr(
    evaluate.data_batches, 'held_out_targets', lambda data, domain: TARGETS[domain]
  )
  monkeypatch.setattr(evaluate.data_batches, 'held_out_bytes', lambda data, domain: BYTES[domain])
  monkeypatch.setattr(evaluate.data_batches, 'lost_bytes', lambda data, domain: 0)
  made = evaluate.Evaluator(small_config(), types.SimpleNamespace(held_out_domains=('a', 'b')))
  # As many tokens are real as are scored. The layers' reading is the loss a token.
  reading = lambda loss, tokens: ({'openness': np.array([loss / tokens, 0.0])}, tokens)
  made._score = lambda params, batch: (*batch[0], 0, reading(*batch[0]))
  return made


def test_a_sample_weighs_the_domains_as_the_whole_text_does(evaluator):
  found = evaluator({}, max_batches=1)
  # a has 2 nats a token, b 1. They weigh as their 10 and 12 tokens, though 5 and 4 were scored.
  assert found.total.loss == pytest.approx((2 * 10 + 1 * 12) / 22)
  assert (found.total.tokens, found.total.bits_per_byte, found.is_sample) == (9, None, True)


@pytest.mark.parametrize('cap', [3, 1000])
def test_where_everything_fits_the_capped_loss_is_that_of_the_table(evaluator, cap):
  whole = evaluator({})
  assert whole.total.loss == (40 + 24) / 22 and not whole.is_sample
  assert whole.total.bits_per_byte == pytest.approx(64 / math.log(2) / 100)
  capped = evaluator({}, cap)
  assert capped.total.loss == whole.total.loss and not capped.is_sample


def test_readings_are_means_over_a_domains_tokens(evaluator):
  found = evaluator({}).readings
  assert {domain: of_one['openness'].tolist() for domain, of_one in found.items()} == {
    'a': [4.0, 0.0],
    'b': [2.0, 0.0],
  }
  assert evaluator({}).mean_readings['openness'] == pytest.approx([64 / 22, 0.0])  # over tokens


def test_what_layers_measured_is_handed_out_with_the_scores():
  config = small_config(
    **{'moe.shared_gate': True, 'moe.gate_mass': 0.6, 'moe.wide_experts': 2, 'moe.wide_factor': 3}
  )
  params, batch = small_params(config), packed_batch(config, padding_row=True)
  *_, (means, real) = evaluate._score_batch(config, forward, params, batch)
  assert real == (batch.segment_ids_BL > 0).sum()
  layers = config.model.num_layers - config.model.num_dense_layers
  assert means['shared_gate'].shape == means['experts_taken'].shape == (layers,)
  taken_N, open_N = means['experts_taken'], means['shared_gate']
  assert ((taken_N >= 1) & (taken_N < config.moe.experts_per_token)).all()
  width_N = means['routed_width']
  assert ((width_N > taken_N * 8) & (width_N < taken_N * 3 * 8)).all()
  assert ((open_N > 0.1) & (open_N < 0.9)).all()


def test_what_a_tokenizer_cannot_write_counts_eight_bits_a_byte(evaluator, monkeypatch):
  before = evaluator({})
  monkeypatch.setattr(evaluate.data_batches, 'lost_bytes', lambda data, domain: 5 * (domain == 'b'))
  found = evaluator({})
  of_b = before.domains['b'].bits_per_byte + 5 * 8 / BYTES['b']
  assert found.domains['b'].bits_per_byte == pytest.approx(of_b)
  assert found.domains['a'] == before.domains['a']
  of_all = before.total.bits_per_byte + 5 * 8 / sum(BYTES.values())
  assert found.total.bits_per_byte == pytest.approx(of_all)


@pytest.mark.parametrize('names, last', [(('a', 'b'), 'total'), (('total', 'b'), '(total)')])
def test_the_row_of_all_domains_is_the_last_and_takes_no_domains_place(monkeypatch, names, last):
  texts = dict(zip(names, (b'x' * 10, b'y' * 30)))
  monkeypatch.setattr(evaluate.data_batches, 'held_out_text', lambda data, domain: texts[domain])
  score = lambda size: evaluate.Score(1.0, 2.0, 5, size)
  domains = {name: score(len(text)) for name, text in texts.items()}
  evaluation = evaluate.Evaluation(domains, score(40), None)
  rows = evaluate.report(evaluation, types.SimpleNamespace(held_out_domains=names))
  assert list(rows) == [*names, last]
  assert [row['bytes'] for row in rows.values()] == [10, 30, 40]


def test_a_table_of_text_without_bytes(monkeypatch):
  row = {'tokens': 1, 'bytes': 0, 'loss': 2.0, 'bits_per_byte': None, 'gzip -9': 0, 'xz -9': 0}
  cells = evaluate.table({'a': row}).splitlines()[1].split()
  assert cells == ['a', '1', '0', '2.0000', '-', '0.000', '0.000']


def test_the_load_of_the_experts_in_words():
  load_NE = np.array([[0.5, 1.5, 1.0, 0.0, 2.0, 1.0], [1.0] * 6])
  config = small_config(**{'moe.gate_mass': 0.5})
  words = lambda **more: evaluate.experts_in_words(
    evaluate.Evaluation({}, None, load_NE, **more), config
  )
  assert '6 routed, 2 a token, over 2 MoE layers' in words()
  assert 'has 2.00 times the mean load at most, 1 of 12 experts are idle' in words()
  taken = {'experts_taken': np.array([1.2, 1.5])}
  assert '6 routed, 1.4 a token, over' in words(mean_readings=taken)
  assert evaluate.experts_in_words(evaluate.Evaluation({}, None, None), config) == ''
