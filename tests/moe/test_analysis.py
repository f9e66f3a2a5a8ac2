"""Interventions are compared with the model as loops over tokens, and counts with brute force."""

import functools
import itertools
import math

import jax
import numpy as np
import pytest

from moe import analysis
from moe.analysis import TOKEN_CLASSES, Intervention
from moe.data import batches as data_batches
from moe.data.prepare import prepare
from moe.errors import UserError
from moe.evaluate import Evaluator
from moe.inspection import Run
from moe.model import Transformer
from moe.ops.implementation import compiling_for
from moe.parameters import decayed
from moe.routers import ROUTERS, Probe, SoftmaxRouter
from moe.train_step import forward
from tests import oracles
from tests.moe.data.helpers import write_corpus
from tests.oracles import exact
from tests.small import assert_close, packed_batch, small_params
from tests.small import small_config as any_config

pytestmark = pytest.mark.usefixtures('quick_compile')

N, E = 2, 6
DENSE_FIRST = {
  'model.num_layers': 3,
  'model.num_dense_layers': 1,
  'model.d_ff': 12,
  'model.remat': 'moe',
}


def small_config(**overrides):
  return any_config(**{'ops.implementation': 'reference'} | overrides)  # compiles fastest


@functools.cache
def compiled(function, config, intervention):
  return jax.jit(lambda params, batch: function(config, params, batch, intervention=intervention))


def run(function, config, params, batch, intervention):
  return jax.device_get(compiled(function, config, intervention)(params, batch))


# The whole model under an intervention, token by token in float64


def by_loops(config, params, row, masked, k, with_shared):
  """(hidden_LD, experts_NLK, gates_NLK) of one row of a batch."""
  model, layers, chosen_NLK, gates_NLK = config.model, [], [], []
  for stack in ('dense_blocks', 'moe_blocks'):
    count = len(params[stack]['ffn_norm']['scale']) if stack in params else 0
    layers += [jax.tree.map(lambda x, i=i: exact(x)[i], params[stack]) for i in range(count)]
  norm = lambda x_LD, scale_D: np.array(
    [oracles.rms_norm(x_D, scale_D, model.norm_eps) for x_D in x_LD]
  )
  expert = lambda w, *at: oracles.Expert(w['gate'][at], w['up'][at], w['down'][at])
  x_LD = exact(params['embedding'])[row.tokens_BL]
  for layer in layers:
    matrices = (layer['attention'][name] for name in ('query', 'key', 'value', 'out'))
    heads = model.num_heads, model.num_kv_heads, model.rope_base
    u_LD = norm(x_LD, layer['attention_norm']['scale'])
    x_LD = x_LD + oracles.attention(u_LD, row.positions_BL, row.segment_ids_BL, *matrices, *heads)
    u_LD = norm(x_LD, layer['ffn_norm']['scale'])
    if 'mlp' in layer:
      x_LD = x_LD + [oracles.ffn(u_D, expert(layer['mlp'])) for u_D in u_LD]
      continue
    moe, y_LD, chosen_LK, gates_LK = layer['moe'], np.zeros_like(x_LD), [], []
    for u_D, y_D in zip(u_LD, y_LD):
      affinities = oracles.softmax(moe['router']['experts'].T @ u_D)
      by_probability = sorted(range(E), key=lambda e: -affinities[e])
      chosen = [e for e in by_probability if e not in by_probability[:masked]][:k]
      for e in chosen:
        y_D += affinities[e] * oracles.ffn(u_D, expert(moe['experts'], e))
      if with_shared:
        y_D += oracles.ffn(u_D, expert(moe['shared']))
      chosen_LK.append(chosen)
      gates_LK.append([affinities[e] for e in chosen])
    x_LD = x_LD + y_LD
    chosen_NLK.append(chosen_LK)
    gates_NLK.append(gates_LK)
  return norm(x_LD, exact(params['final_norm']['scale'])), np.array(chosen_NLK), np.array(gates_NLK)


@pytest.mark.parametrize(
  ('overrides', 'intervention', 'masked', 'k', 'with_shared'),
  [
    ({}, Intervention(masked_share=1 / 3), 2, 2, True),
    ({}, Intervention(experts_per_token=1), 0, 1, True),
    ({}, Intervention(without_shared=True, experts_per_token=3), 0, 3, False),
    (
      DENSE_FIRST | {'ops.implementation': 'auto'},
      Intervention(masked_share=0.5, experts_per_token=3, without_shared=True),
      *(3, 3, False),
    ),
  ],
)
def test_against_the_loops(overrides, intervention, masked, k, with_shared):
  config = small_config(**overrides, **{'data.batch_size': 2})
  params, batch = small_params(config), packed_batch(config)
  hidden_BLD, (stats, *_) = run(analysis.forward, config, params, batch, intervention)
  choices = run(analysis.routing, config, params, batch, intervention)
  assert (choices.experts_NBLK.dtype, choices.gates_NBLK.dtype) == (np.int32, np.float32)
  assert (choices.is_token_BL == (batch.segment_ids_BL > 0)).all()
  for b in range(2):
    row = jax.tree.map(lambda x, b=b: x[b], batch)
    hidden_LD, experts_NLK, gates_NLK = by_loops(config, params, row, masked, k, with_shared)
    real = row.segment_ids_BL > 0
    assert_close(hidden_BLD[b][real], hidden_LD[real], 2e-5)
    assert (choices.experts_NBLK[:, b] == experts_NLK).all()
    # Gates are not renormalised: their softmax is over all experts, masked ones too.
    assert_close(choices.gates_NBLK[:, b], gates_NLK, 2e-5)
    counts_NE = [
      np.bincount(experts_LK[real].reshape(-1), minlength=E) for experts_LK in experts_NLK
    ]
    assert (stats.counts_BE[:, b] == counts_NE).all()


def test_no_intervention_is_the_plain_model_bit_for_bit():
  config = small_config()
  params, batch = small_params(config), packed_batch(config)
  plain = jax.device_get(jax.jit(forward, static_argnums=0)(config, params, batch))
  jax.tree.map(
    np.testing.assert_array_equal,
    run(analysis.forward, config, params, batch, Intervention()),
    plain,
  )


def test_without_shared_is_shared_experts_that_give_zero():
  config = small_config()
  params, batch = small_params(config), packed_batch(config)
  without = run(
    analysis.forward,
    config,
    params,
    batch,
    Intervention(without_shared=True, experts_per_token=3),
  )
  moe = params['moe_blocks']['moe']
  silent = moe | {'shared': moe['shared'] | {'down': np.zeros_like(moe['shared']['down'])}}
  silent = params | {'moe_blocks': params['moe_blocks'] | {'moe': silent}}
  assert_close(
    run(analysis.forward, config, silent, batch, Intervention(experts_per_token=3)),
    without,
    1e-6,
    'silent',
  )
  changed, kept, masked = analysis.apply(config, params, Intervention(without_shared=True))
  assert (changed.moe.num_shared_experts, changed.moe.experts_per_token, masked) == (0, 2, 0)
  assert 'shared' not in kept['moe_blocks']['moe'] and 'shared' in params['moe_blocks']['moe']
  assert kept['moe_blocks']['moe']['experts'] is moe['experts']
  assert jax.tree.structure(decayed(changed)) == jax.tree.structure(kept)


@pytest.mark.parametrize(('platform', 'kernels'), [('tpu', 'pallas_tpu'), ('gpu', 'pallas_gpu')])
def test_masking_behind_fused_routers(platform, kernels):
  """The router's kernels, interpreted, give the reference's result, which the loops check."""
  generator = np.random.default_rng(0)
  u_BLD, experts_DE = (
    generator.normal(size=shape).astype(np.float32) for shape in ((2, 9, 16), (16, 16))
  )
  is_token_BL = generator.random((2, 9)) < 0.7

  def choose(implementation):
    config = any_config(
      **{'moe.num_experts': 16, 'moe.experts_per_token': 2, 'ops.implementation': implementation}
    )
    router = SoftmaxRouter(config, Probe(masked=3))
    call = lambda w, u: router.apply(
      {'params': {'experts': w}}, u, np.zeros((2, 9), np.int32), is_token_BL
    )
    return jax.device_get(jax.jit(call)(experts_DE, u_BLD))

  truth = choose('reference')
  with compiling_for(platform, interpret=True):
    routing = choose(kernels)
  assert (routing.experts_BLK == truth.experts_BLK).all() and routing.experts_BLK.shape == (2, 9, 2)
  assert (routing.stats.counts_BE == truth.stats.counts_BE).all()
  assert_close(routing, truth, 1e-5)


def test_masked_experts_of_the_figure():
  ratios = [sixteenths / 16 for sixteenths in range(5)]
  assert [Intervention(masked_share=ratio).masked(63) for ratio in ratios] == [0, 4, 8, 12, 16]
  assert [Intervention(masked_share=ratio).masked(16) for ratio in ratios] == [0, 1, 2, 3, 4]
  assert Intervention(masked_share=1 / 16).masked(8) == 1


@pytest.mark.parametrize(
  ('overrides', 'intervention', 'message'),
  [
    ({}, {'masked_share': 1.0}, 'masked_share=1.0 must be a number, at least 0 and below 1'),
    ({}, {'masked_share': math.nan}, 'masked_share=nan must be a number, at least 0'),
    ({}, {'masked_share': '1/4'}, "masked_share='1/4' must be a number"),
    ({}, {'without_shared': 'no'}, "without_shared='no' must be True or False"),
    (
      {'moe.device_groups': 2, 'moe.device_limit': 1},
      {'masked_share': 1 / 6, 'experts_per_token': 3},
      'experts_per_token=3 and 1 masked experts .* more than the 3 experts of moe.device_limit=1',
    ),
    ({}, {'masked_share': 0.75}, 'leaves 1 to choose from, fewer than the 2'),
    (
      {},
      {'experts_per_token': 0},
      'experts_per_token=0 must be a whole number from 1 to moe.num_experts=6',
    ),
    ({}, {'experts_per_token': 7}, 'experts_per_token=7 must be'),
    ({}, {'experts_per_token': 2.5}, 'experts_per_token=2.5 must be'),
    ({'moe.router': 'hash'}, {'masked_share': 0.2}, "moe.router is 'hash'"),
    ({'moe.num_shared_experts': 0}, {'without_shared': True}, 'moe.num_shared_experts is 0'),
    (
      {'moe.num_experts': 0, 'moe.experts_per_token': 0},
      {'without_shared': True},
      'leaves no expert at all',
    ),
    (
      {'moe.num_experts': 0, 'moe.experts_per_token': 0},
      {'masked_share': 0.2},
      'needs routed experts',
    ),
    ({'moe.num_experts': 0, 'moe.experts_per_token': 0}, {}, 'small has no routed experts'),
    (
      {'model.num_dense_layers': 2, 'model.d_ff': 12},
      {'without_shared': True},
      'leaves no MoE layer',
    ),
  ],
)
def test_what_a_model_cannot_do(overrides, intervention, message):
  config = small_config(**overrides)
  with pytest.raises(UserError, match=message) as error:
    call = analysis.forward if intervention else analysis.routing
    call(config, small_params(config), packed_batch(config), Intervention(**intervention))
  assert '\n' not in str(error.value)


# Counts


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  folder = tmp_path_factory.mktemp('text')
  for domain in 'ab':
    write_corpus(folder, domain, 20, words=(3, 40))
  config = _data_config(**{'data.sources': f'a={folder}/a-*.txt;b={folder}/b-*.txt'})
  return prepare(config, folder / 'prepared')


def _data_config(**overrides):
  sizes = {
    'model.vocab_size': 400,
    'data.holdout': 0.2,
    'evaluation.batch_size': 3,
    'train.loss_chunk': 32,
  }
  return small_config(**sizes | overrides)


def test_counts_against_a_loop_over_tokens():
  """Also for a hash router, whose choices need no probabilities, and with a gate mass, which drops
  some choices.
  """
  for changed in ({}, {'moe.router': 'hash'}, {'moe.experts_per_token': 4, 'moe.gate_mass': 0.7}):
    config = small_config(**changed)
    params, batch = small_params(config), packed_batch(config)
    class_V = (
      np.random.default_rng(0)
      .integers(0, len(TOKEN_CLASSES), config.model.vocab_size)
      .astype(np.int32)
    )
    counted = functools.partial(analysis.count, class_V=class_V)
    counts = run(counted, config, params, batch, Intervention())
    choices = run(analysis.routing, config, params, batch, Intervention())
    truth = jax.tree.map(np.zeros_like, counts)
    for b, position in zip(*np.nonzero(batch.weights_BL)):
      of_class = class_V[batch.tokens_BL[b, position]]
      of_next = class_V[batch.targets_BL[b, position]]
      truth.class_tokens_C[of_class] += 1
      for n in range(N):
        gates_K = choices.gates_NBLK[n, b, position]
        chosen = choices.experts_NBLK[n, b, position][gates_K > 0]
        for i, j in itertools.product(chosen, chosen):
          truth.pairs_NEE[n, i, j] += 1
        for i in chosen:
          truth.sequences_NBE[n, b, i] += 1
          truth.classes_NCE[n, of_class, i] += 1
          truth.next_NCE[n, of_next, i] += 1
    jax.tree.map(np.testing.assert_array_equal, counts, truth)


def test_survey_and_loss_of_all_held_out_text(data):
  config = _data_config()
  params = small_params(config)
  intervention = Intervention(masked_share=1 / 6, experts_per_token=3)
  survey = analysis.survey(config, params, data, intervention)
  trained = Run(Transformer(config), params, data.tokenizer, config, 0)
  evaluation = trained.intervene(intervention).evaluate(data)

  total, tokens = 0.0, 0
  for number, domain in enumerate(data.held_out_domains):
    loss, of_domain = 0.0, 0
    for batch in data_batches.evaluation_batches(data, domain, config):
      hidden_BLD, _ = run(analysis.forward, config, params, batch, intervention)
      logits_BLV = exact(hidden_BLD) @ exact(params['head'])
      losses_BL = np.log(np.exp(logits_BLV).sum(axis=2))
      losses_BL -= np.take_along_axis(logits_BLV, batch.targets_BL[:, :, None], axis=2)[:, :, 0]
      loss, of_domain = (
        loss + (losses_BL * batch.weights_BL).sum(),
        of_domain + int(batch.weights_BL.sum()),
      )
    assert evaluation.domains[domain].loss == pytest.approx(loss / of_domain, rel=1e-5)
    assert (
      survey.sequences_NXE[:, survey.domain_X == number].sum(axis=(1, 2)) == 3 * of_domain
    ).all()
    total, tokens = total + loss, tokens + of_domain
  assert evaluation.total.loss == pytest.approx(total / tokens, rel=1e-5)
  assert evaluation.total.loss != pytest.approx(
    Evaluator(config, data)(params).total.loss, rel=1e-3
  )

  assert survey.domains == ('a', 'b') and survey.sequences_NXE.any(axis=(0, 2)).all()
  counts_NE = survey.sequences_NXE.sum(axis=1)
  assert (survey.classes_NCE.sum(axis=1) == counts_NE).all()
  assert (np.diagonal(survey.pairs_NEE, axis1=1, axis2=2) == counts_NE).all()
  assert survey.class_tokens_C.sum() == tokens
  # Only the beginning of each document is an input of class control; the end is only a target.
  assert survey.class_tokens_C[TOKEN_CLASSES.index('control')] == sum(
    data.totals('held_out', domain)['documents'] for domain in data.held_out_domains
  )


def test_a_router_with_gates_of_its_own_is_masked_and_surveyed(data, monkeypatch):
  class Renormalised(SoftmaxRouter):
    def gates(self, affinities_BLK):
      return affinities_BLK / affinities_BLK.sum(axis=-1, keepdims=True)

  monkeypatch.setitem(ROUTERS, 'softmax', Renormalised)
  config = _data_config()
  params, masked = small_params(config), Intervention(masked_share=1 / 3)
  (batch, *_) = data_batches.evaluation_batches(data, 'a', config)
  best, rest = (
    jax.device_get(analysis.routing(config, params, batch, each))
    for each in (Intervention(), masked)
  )
  assert_close(rest.gates_NBLK.sum(axis=-1), np.ones(rest.gates_NBLK.shape[:3]), 1e-6)
  # Only the first layer is compared: masking it changes the inputs of the others.
  first, second = best.experts_NBLK[0], rest.experts_NBLK[0]
  assert not (first[..., :, None] == second[..., None, :]).any()
  surveyed = analysis.survey(config, params, data, masked, max_batches=1)
  assert (surveyed.sequences_NXE.sum(axis=(1, 2)) == 2 * surveyed.class_tokens_C.sum()).all()


def test_token_classes(data):
  by_hand = {
    '<s>': 'control',
    '<0x0A>': 'byte',
    '▁': 'space',
    '▁▁▁': 'space',
    '\n▁▁': 'space',
    '▁the': 'word',
    'ing': 'letters',
    'é': 'letters',
    '中文': 'cjk',
    '▁か': 'cjk',
    '한': 'cjk',
    '7': 'digit',
    '▁7': 'digit',
    '、': 'symbol',
    '▁(': 'symbol',
    '=': 'symbol',
  }
  assert {piece: analysis.token_class(piece, piece != '<s>') for piece in by_hand} == by_hand
  assert set(by_hand.values()) == set(TOKEN_CLASSES)
  class_V = analysis.token_classes(data.tokenizer, 500)
  assert (class_V.shape, class_V.dtype) == ((500,), np.int32)
  names = [TOKEN_CLASSES[c] for c in class_V]
  assert set(names[data.tokenizer.vocab_size :]) == {'control'}
  assert names.count('byte') == 256
  assert names[data.tokenizer.encode('\n\n')[0]] == 'space'
  assert [names[i] for i in data.tokenizer.encode(' return 12')] == [
    'word',
    'space',
    'digit',
    'digit',
  ]
