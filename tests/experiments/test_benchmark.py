"""The benchmark's arithmetic on functions of known length, and its programs on tiny shapes."""

import itertools
import time

import jax
import numpy as np
import pytest

from experiments.benchmarks import (
  decode,
  evaluation,
  hugging_face,
  moe_layer,
  suite,
  timing,
  tokenizer,
  train_step,
)
from moe.accounting import account
from moe.config import from_config_dict
from moe.errors import UserError
from moe.inspection import Run
from moe.metrics.profile import Row
from moe.model import Transformer
from tests.moe.test_generate import Letters
from tests.small import small_config, small_params


class Clock:
  """Stands in for time.perf_counter. `work(s, …)` returns a function whose calls take the given
  seconds in turn, over and over.
  """

  def __init__(self, monkeypatch):
    self.now = 0.0
    monkeypatch.setattr(time, 'perf_counter', lambda: self.now)

  def work(self, *seconds):
    durations = itertools.cycle(seconds)

    def run():
      self.now += next(durations)

    return run


def test_compare_takes_ratios_pair_by_pair(monkeypatch):
  clock = Clock(monkeypatch)
  # The warm-up, then 4 ÷ 2, 9 ÷ 3 and 5 ÷ 5: the median of the ratios is not
  # the ratio of the medians.
  row = timing.compare('name', clock.work(50, 4, 9, 5), clock.work(60, 2, 3, 5), 3, 100, bar=1.5)
  assert (row['ratio_min'], row['ratio_median'], row['ratio_max']) == (1, 2, 3)
  assert row['tokens_per_second_median'] == [100 / 5, 100 / 3]
  assert (row['rounds'], row['bar'], row['name']) == (3, 1.5, 'name')
  assert '1.50' in timing.table([row])


def test_scopes_are_shares_of_all_that_is_computed():
  row = lambda scope, direction, ms, share: Row(scope, direction, ms, share)
  profiles = [
    [row('attention', 'forward', 3.0, 0.3), row('', 'backward', 7.0, 0.7)],
    [row('attention', 'forward', 1.0, 0.1), row('', 'backward', 9.0, 0.9)],
  ]
  rest, attention = timing.by_scope('step', profiles)
  assert rest['name'] == 'step: no scope, backward' and rest['ratio_median'] == 0.8
  assert attention['name'] == 'step: attention, forward'
  spread = [attention[f'ratio_{which}'] for which in ('min', 'median', 'max')]
  assert spread == [0.1, 0.2, 0.3] and attention['core_milliseconds_a_step'] == 2.0
  assert '2.0 core-ms' in timing.table([attention]) and not timing.is_over(attention)


def test_breakdown_is_the_share_of_the_whole(monkeypatch):
  clock = Clock(monkeypatch)
  part, peak = (
    timing.Part('part', clock.work(1), 10**9, times=2),
    timing.Part('peak', clock.work(2), 10**10),
  )
  [row] = timing.breakdown('step', clock.work(8), [part], peak, 3)
  assert row['name'] == 'step: part'
  assert (row['ratio_median'], row['gflops_per_second'], row['peak_gflops_per_second']) == (
    0.25,
    1,
    5,
  )


@pytest.mark.parametrize('skewed', [False, True])
def test_sides_and_parts_run(monkeypatch, skewed):
  monkeypatch.setattr(moe_layer, '_SEQUENCES', 2)
  monkeypatch.setattr(moe_layer, '_LENGTH', 4)
  shape = moe_layer.Shape(d_model=8, d_expert=4, num_experts=4, experts_per_token=2)
  moe_layer.moe_layer(shape, 'bfloat16', skewed)()
  moe_layer.dense_ffn(shape, 'float32')()
  parts = moe_layer.parts(shape, 8, 'bfloat16')
  assert {part.name for part in parts if part.flops} >= {'router', 'routed FFN'}
  for part in parts:
    part.run()


def test_skewed_routing_gives_one_expert_four_fifths_of_the_tokens(monkeypatch):
  seen = []
  original = moe_layer.MoELayer.apply

  def spy(self, *arguments, **options):
    y, aside = original(self, *arguments, **options)
    jax.debug.callback(lambda counts: seen.append(np.asarray(counts)), aside.stats.counts_BE)
    return y, aside

  monkeypatch.setattr(moe_layer.MoELayer, 'apply', spy)
  shape = moe_layer.Shape(d_model=16, d_expert=4, num_experts=16, experts_per_token=2)
  moe_layer.moe_layer(shape, 'float32', skewed=True)()
  share = seen[0].sum(axis=0)[0] / (moe_layer._SEQUENCES * moe_layer._LENGTH)
  assert 0.8 <= share < 0.85  # of the rest it gets no more than the others


def test_the_dense_twin_activates_as_much():
  config = small_config()
  dense, moe = account(train_step.dense_twin(config)), account(config)
  router = config.moe.num_experts * config.model.d_model * config.model.num_layers
  assert dense.active_params == moe.active_params - router
  assert from_config_dict(train_step.dense_twin(config).to_dict()) == train_step.dense_twin(config)


def test_a_peer_that_is_not_there_is_named(monkeypatch):
  with pytest.raises(UserError, match='--peer=transformers goes with --suite=train_step'):
    suite('proxy', 'transformers')
  monkeypatch.setattr(hugging_face, 'is_installed', lambda: False)
  with pytest.raises(UserError, match='pip install torch transformers'):
    suite('train_step', 'transformers')(1)


def test_a_tokenizer_beside_its_library(monkeypatch):
  monkeypatch.setattr(tokenizer, '_CHARACTERS', 20_000)
  [row] = tokenizer.suite(1)
  assert row['bar'] == 1.25 and row['ratio_median'] > 0
  assert min(row['tokens_per_second_median']) > 0


def test_the_dense_model_activates_so_many_times_as_much():
  config = evaluation.config_of(Letters())
  dense = decode.dense_of(config, 2.45)
  assert account(dense).active_params / account(config).active_params == pytest.approx(2.45, 1e-3)
  assert account(dense).total_params == account(dense).active_params
  assert from_config_dict(dense.to_dict()) == dense


def test_sides_of_decoding_say_the_same(monkeypatch):
  monkeypatch.setattr(decode, '_TOKENS', 5)
  config = small_config()
  run = Run(Transformer(config), small_params(config), Letters(), config, 1)
  monkeypatch.setattr(decode, '_prompt_ids', lambda run: [1, 2, 3])
  decode.prefill(run)()
  today, before, several = decode.decode(run, 1), decode.through_stacks(run), decode.decode(run, 3)
  said = today()
  assert len(said) == 5 and said == today() == before()
  assert [row_B[:1] for row_B in several()] == said
