"""Every method of a Run, compared with loops over tokens, with evaluation, and with itself on other
batches and devices.
"""

import contextlib

import jax
import numpy as np
import pytest

from moe.analysis import Intervention
from moe.checkpoint import Checkpointer, load_for_notebook
from moe.data.packing import Batch
from moe.data.store import HELD_OUT
from moe.errors import UserError
from moe.evaluate import Evaluator
from moe.generate import Sampling, generate
from moe.inspection import programs
from moe.routers import ROUTERS
from moe.run import load_run
from tests import oracles
from tests.moe.inspection import opened
from tests.moe.inspection.opened import IDS, ONE_MOE_LAYER, run_of
from tests.moe.test_analysis import by_loops
from tests.oracles import exact
from tests.small import assert_close, small_state

pytestmark = pytest.mark.usefixtures('quick_compile')

DENSE_FIRST = {'model.num_layers': 3, 'model.num_dense_layers': 1, 'model.d_ff': 12}
VARIANTS = {'moe': {}, 'dense_first': DENSE_FIRST, 'hash': {'moe.router': 'hash'}}
TEXTS = ['the expert router', 'one', '', 'gate, gate and gate again: a longer text 中文']


def truth(run, ids, masked=0, k=None, with_shared=True):
  """(logits_LV, experts_NLK, gates_NLK) of the model, by loops over tokens in float64."""
  ids_L = np.array(ids)
  row = Batch(ids_L, ids_L, np.arange(len(ids_L)), np.ones_like(ids_L), ids_L)
  k = k or run.config.moe.experts_per_token
  hidden_LD, *choices = by_loops(run.config, run.params, row, masked, k, with_shared)
  return hidden_LD @ exact(run.params['head']), *choices


@pytest.mark.parametrize('overrides', [{}, DENSE_FIRST], ids=['moe', 'dense_first'])
def test_logits_losses_and_choices_are_those_of_the_loops(overrides):
  run = run_of(**overrides)
  answers = run.logits(IDS), run.loss(IDS), run.routing(IDS)
  for ids, logits_LV, loss, routing in zip(IDS, *answers, strict=True):
    logits, experts_NLK, gates_NLK = truth(run, ids)
    assert logits_LV.dtype == np.float32
    assert_close(logits_LV, logits, 2e-5)
    losses = [oracles.log_sum_exp(row) - row[t] for row, t in zip(logits, ids[1:])]
    np.testing.assert_allclose(loss.losses_L, losses, rtol=1e-5, atol=1e-5)
    assert loss.tokens_L.tolist() == ids[1:] and loss.bytes_L is None
    assert (routing.experts_NLK == experts_NLK).all() and routing.affinities_NLE is None
    assert_close(routing.gates_NLK, gates_NLK, 2e-5)


def test_logits_are_what_applying_the_model_gives(data):
  """The model is applied to one text at a time, without padding."""
  run = run_of(data.tokenizer)
  apply = jax.jit(run.model.apply, static_argnames='method')
  for text, logits_LV in zip(TEXTS[:3], run.logits(TEXTS[:3]), strict=True):
    ids_BL = np.array([[run.tokenizer.bos_id, *run.tokenizer.encode(text)]])
    positions_BL, ones_BL = np.arange(ids_BL.size)[None], np.ones_like(ids_BL)
    hidden, _, _ = apply({'params': run.params}, ids_BL, positions_BL, ones_BL)
    logits = apply({'params': run.params}, hidden, method='logits')
    assert (run.tokens(text) == ids_BL[0]).all()
    assert_close(logits_LV, logits[0], 1e-6)


@pytest.mark.parametrize('variant', VARIANTS)
def test_the_residual_stream_ends_in_the_logits_and_is_what_routers_see(variant):
  run = run_of(**VARIANTS[variant])
  model, apply = run.config.model, lambda *x, **y: run.model.apply({'params': run.params}, *x, **y)
  ids = IDS[1]
  hidden_NLD, logits_LV = run.hidden(ids), run.logits(ids)
  routing = run.routing(ids, affinities=True)
  assert hidden_NLD.shape == (model.num_layers + 1, len(ids), model.d_model)
  assert (hidden_NLD[0] == run.params['embedding'][np.array(ids)]).all()
  final_LD = apply(hidden_NLD[-1], method='finish')
  assert_close(apply(final_LD, method='logits'), logits_LV, 1e-6)
  norm = lambda x_LD, scale_D: np.array(
    [oracles.rms_norm(x_D, scale_D, model.norm_eps) for x_D in x_LD]
  )
  for n in range(model.num_layers - model.num_dense_layers):
    layer = jax.tree.map(lambda x, n=n: exact(x)[n], run.params['moe_blocks'])
    x_LD = exact(hidden_NLD[n + model.num_dense_layers])
    matrices = (layer['attention'][name] for name in ('query', 'key', 'value', 'out'))
    positions = np.arange(len(ids)), np.ones(len(ids))
    x_LD = x_LD + oracles.attention(
      norm(x_LD, layer['attention_norm']['scale']),
      *positions,
      *matrices,
      *(model.num_heads, model.num_kv_heads, model.rope_base),
    )
    if variant == 'hash':
      assert (routing.affinities_NLE[n] == 1).all() and (routing.gates_NLK[n] == 1).all()
      continue
    for t, u_D in enumerate(norm(x_LD, layer['ffn_norm']['scale'])):
      gates, chosen, affinities = oracles.route(u_D, layer['moe']['router']['experts'], 2)
      assert routing.experts_NLK[n, t].tolist() == chosen
      np.testing.assert_allclose(routing.gates_NLK[n, t], gates, rtol=2e-5)
      np.testing.assert_allclose(routing.affinities_NLE[n, t], affinities, rtol=2e-5, atol=1e-7)


def test_losses_add_up_to_what_evaluation_has_and_bytes_to_the_text(data):
  """The longest documents take several windows."""
  run = run_of(data.tokenizer)
  scores = Evaluator(run.config, data)(run.params)
  assert run.evaluate(data).domains == scores.domains
  for domain, score in scores.domains.items():
    documents = data.documents(HELD_OUT, domain)
    ids = [documents.document(number) for number in range(len(documents))]
    ends = lambda each_N: [run.tokenizer.bos_id, *each_N.tolist(), run.tokenizer.eos_id]
    of_ids = run.loss([ends(each) for each in ids])
    assert max(len(each.losses_L) for each in of_ids) > 2 * run.config.data.seq_len
    losses = np.concatenate([each.losses_L for each in of_ids]).astype(np.float64)
    assert len(losses) == score.tokens
    assert losses.mean() == pytest.approx(score.loss, rel=1e-6)
    assert sum(each.bytes_L.sum() for each in of_ids) == score.bytes
    of_texts = run.loss([run.tokenizer.decode(each) for each in ids])
    for text, same in zip(of_texts, of_ids, strict=True):
      jax.tree.map(np.testing.assert_array_equal, text, same)
  for text, loss in zip(TEXTS, run.loss(TEXTS), strict=True):
    assert loss.bytes_L.sum() == len(text.encode()) and loss.tokens_L[-1] == run.tokenizer.eos_id


def test_a_long_text_is_read_in_windows_as_evaluation_reads_it(data):
  run = run_of(data.tokenizer)
  text = run.tokenizer.decode(data.documents(HELD_OUT, 'a').document(0))
  ids, length = run.tokens(text), run.config.data.seq_len
  assert len(ids) > 2 * length
  logits_LV, loss, hidden_NLD = run.logits(text), run.loss(text), run.hidden(text)
  assert len(logits_LV) == len(loss.losses_L) == hidden_NLD.shape[1] == len(ids)
  rows = np.arange(len(ids))
  log_sums = np.log(np.exp(exact(logits_LV)).sum(axis=1))
  losses = log_sums - exact(logits_LV)[rows, loss.tokens_L]
  np.testing.assert_allclose(loss.losses_L, losses, rtol=1e-5, atol=1e-5)
  # The second window begins half a window before its first scored token. Alone, it has another
  # place in its batch, and jax 0.12 sums it in another order than 0.10.
  second = run.logits(ids[length // 2 :][:length])[length // 2 :]
  assert_close(logits_LV[length:][: len(second)], second, 2e-6)


def test_neither_padding_nor_neighbours_nor_order_change_an_answer():
  run = run_of(**DENSE_FIRST)
  ask = lambda ids, **how: (
    run.logits(ids, **how),
    run.hidden(ids, **how),
    run.routing(ids, affinities=True, **how),
    run.loss(ids, **how),
  )
  alone = [ask(ids) for ids in IDS]
  for how in ({'batch_size': 1}, {'batch_size': 3}, {}):
    together = zip(*ask(IDS, **how), strict=True)
    for one, same in zip(alone, together, strict=True):
      assert (one[2].experts_NLK == same[2].experts_NLK).all()
      assert_close(same, one, 2e-6)
  backwards = zip(*ask(IDS[::-1]), strict=True)
  for one, same in zip(alone[::-1], backwards, strict=True):
    assert_close(same, one, 2e-6)


def test_few_programs_are_compiled():
  run = run_of(**{'data.seq_len': 128, 'data.batch_size': 4})
  lengths = [1, 5, 20, 31, 33, 60, 70, 127]
  compiled = programs._compiled(run.model, programs.Wanted(losses=True), None)
  run.loss([[1] * length for length in lengths])
  run.loss([[1] * length for length in lengths[::-1]])
  assert compiled._cache_size() == 1
  run.loss([1, 2])
  run.loss([1] * 30)
  assert compiled._cache_size() == 2


def test_forms_of_input(data):
  run = run_of(data.tokenizer)
  one = run.logits([1, 2, 3])
  for several in ([[1, 2, 3]], np.array([[1, 2, 3]]), ((1, 2, 3),), [np.array([1, 2, 3])]):
    (same,) = run.logits(several)
    assert (one == same).all()
  assert (run.logits(np.array([1, 2, 3])) == one).all()
  assert run.logits([]) == [] and run.loss([]) == [] and run.replay([], []) == []
  model, params, tokenizer, config, step = run
  assert (model, tokenizer, config, step) == (run.model, data.tokenizer, run.config, 7)
  assert params is run.params


@pytest.mark.parametrize(
  ('texts', 'message'),
  [
    ([[1, 400]], 'text 0: token id 400 must be at least 0 and below model.vocab_size=400'),
    ([[1], [-1]], 'text 1: token id -1 must be'),
    ([[1], []], 'text 1 must be a string, or token ids: whole numbers, at least one'),
    ([[1.5]], r'text 0 must be a string, or token ids: .* it is .\[1.5\]'),
    (np.zeros((1, 2, 2), int), 'text 0 must be a string, or token ids'),
    (5, 'must be a string, or token ids'),
    ('a\udcff', r"the text 'a.udcff' is not UTF-8 at character 2"),
    ('a', 'the run has no tokenizer'),
  ],
)
def test_what_is_no_text(texts, message):
  with pytest.raises(UserError, match=message) as error:
    run_of().logits(texts)
  assert '\n' not in str(error.value)


def test_a_dense_model_has_no_routing():
  dense = {'moe.num_experts': 0, 'moe.experts_per_token': 0}
  run = run_of(**dense)
  for ask in (run.routing, run.routing_table, lambda ids: run.replay(ids, [])):
    with pytest.raises(UserError, match='small has no routed experts'):
      ask([1, 2])
  assert run.hidden([1, 2]).shape == (3, 2, 16)
  with pytest.raises(UserError, match='batch_size=0 must be'):
    run.logits([1, 2], batch_size=0)


# Changed models


@pytest.mark.parametrize(
  ('changes', 'masked', 'k', 'with_shared'),
  [
    ({'masked_share': 1 / 3}, 2, 2, True),
    ({'experts_per_token': 1}, 0, 1, True),
    ({'without_shared': True, 'experts_per_token': 3}, 0, 3, False),
  ],
)
def test_an_intervened_run_answers_as_the_loops_do(changes, masked, k, with_shared):
  run = run_of(**DENSE_FIRST)
  changed = run.intervene(**changes)
  for same in (changed, run.intervene(Intervention(**changes))):
    assert (same.logits(IDS[1]) == changed.logits(IDS[1])).all()
  logits_LV, experts_NLK, gates_NLK = truth(run, IDS[1], masked, k, with_shared)
  routing = changed.routing(IDS[1], affinities=True)
  assert_close(changed.logits(IDS[1]), logits_LV, 2e-5)
  assert (routing.experts_NLK == experts_NLK).all()
  assert_close(routing.gates_NLK, gates_NLK, 2e-5)
  taken = np.take_along_axis(routing.affinities_NLE, routing.experts_NLK, axis=-1)
  assert (taken == routing.gates_NLK).all()
  assert_close(run.logits(IDS[1]), truth(run, IDS[1])[0], 2e-5)


def test_samples_under_an_intervention(data):
  run = run_of(data.tokenizer)
  masked = run.intervene(masked_share=1 / 6)
  for each in (run, masked):
    ids = each.tokens('the').tolist()
    completion = each.generate('the', max_new_tokens=4)
    for token in completion.tokens:
      logits_V = np.where(_text(each), each.logits(ids)[-1], -np.inf)
      assert token == logits_V.argmax()
      ids.append(token)
  sampled = generate(run, ['the', 'one'], 5, Sampling(0.8, 9, 0.9), seed=3)
  assert run.generate(['the', 'one'], 5, 0.8, 9, 0.9, seed=3) == sampled


def _text(run):
  allowed_V = np.zeros(run.config.model.vocab_size, bool)
  allowed_V[: run.tokenizer.vocab_size] = run.tokenizer.is_text
  allowed_V[run.tokenizer.eos_id] = True
  return allowed_V


def test_without_the_shared_expert_its_gate_is_gone_too():
  run = run_of(**{'moe.shared_gate': True})
  without = run.intervene(without_shared=True)
  assert (
    without.with_config(experts_per_token=1).logits(IDS[1])
    == run.intervene(without_shared=True, experts_per_token=1).logits(IDS[1])
  ).all()


def test_options_of_a_trained_model():
  run = run_of()
  fewer = run.with_config(experts_per_token=1)
  assert fewer.config.moe.experts_per_token == fewer.model.config.moe.experts_per_token == 1
  assert (fewer.logits(IDS[1]) == run.intervene(experts_per_token=1).logits(IDS[1])).all()
  hashed = run_of(**{'moe.router': 'hash'})
  other = hashed.with_config(hash_seed=5)
  assert (other.routing(IDS[1]).experts_NLK != hashed.routing(IDS[1]).experts_NLK).any()
  masked = run.intervene(masked_share=0.5).with_config(experts_per_token=3)
  assert_close(masked.logits(IDS[1]), truth(run, IDS[1], 3, 3)[0], 2e-5)
  assert run.with_config(balance_scope='sequence', experts_per_token=2).config == run.config


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'num_experts': 4}, r'moe.num_experts=4 would change the parameters .* leave it 6'),
    ({'num_shared_experts': 0}, 'moe.num_shared_experts=0 would change the parameters'),
    ({'d_expert': 4}, 'moe.d_expert=4 would change the parameters'),
    ({'router': 'hash'}, "moe.router='hash' would change the parameters"),
    ({'balance_scope': 'batch'}, "moe.balance_scope='batch' changes nothing that this trained"),
    ({'router_z_weight': 0.5}, 'moe.router_z_weight=0.5 changes nothing'),
    ({'hash_seed': 3}, 'moe.hash_seed=3 changes nothing'),
    ({'experts_per_tokens': 3}, "the nearest valid key is 'moe.experts_per_token'"),
    ({'experts_per_token': 7}, 'moe.experts_per_token=7 is more than moe.num_experts=6'),
    ({'experts_per_token': '3'}, 'moe.experts_per_token'),
  ],
)
def test_options_that_a_trained_model_does_not_have(options, message):
  with pytest.raises(UserError, match=message) as error:
    run_of().with_config(**options)
  assert '\n' not in str(error.value)


def test_options_that_need_each_other_come_in_any_order():
  run = run_of(**{'moe.router': 'sigmoid'})
  limit = {'device_groups': 3, 'device_limit': 1}
  one, other = run.with_config(**limit), run.with_config(**dict(reversed(limit.items())))
  assert one.config == other.config and one.config.moe.device_limit == 1
  of = lambda run: run.routing(IDS[1]).experts_NLK // 2
  assert (of(one)[..., 0] == of(one)[..., 1]).all() and (of(run)[..., 0] != of(run)[..., 1]).any()
  with pytest.raises(UserError, match=r'moe.num_experts=4, moe.d_expert=4 would .* leave it 6, '):
    run.with_config(num_experts=4, d_expert=4)


def test_interventions_that_a_model_cannot_do(monkeypatch):
  run = run_of()
  for ask, message in (
    (lambda: run.intervene(mask=1), "no intervention 'mask': there are experts_per_token, masked"),
    (lambda: run_of(**{'moe.router': 'hash'}).intervene(masked_share=0.2), "router is 'hash'"),
    (lambda: run.intervene(masked_share=0.75), 'leaves 1 to choose from'),
    (lambda: run.intervene(masked_share=0.5).with_config(experts_per_token=4), 'leaves 3 to'),
  ):
    with pytest.raises(UserError, match=message):
      ask()
  monkeypatch.setitem(ROUTERS, 'softmax', opened.Stubborn)
  with pytest.raises(UserError, match='experts_per_token=1 needs a router that allows it'):
    run.with_config(experts_per_token=1)


# Replay


@pytest.mark.parametrize('variant', [*VARIANTS, 'renormalised'])
@pytest.mark.parametrize('gates', [False, True])
def test_a_runs_own_routing_gives_its_own_logits_bit_for_bit(variant, gates, monkeypatch):
  if variant == 'renormalised':
    monkeypatch.setitem(ROUTERS, 'softmax', opened.Renormalised)
  # A name of its own, as compiled programs are cached by config.
  run = run_of(**VARIANTS.get(variant, {}), **{'name': f'{variant}-{gates}'})
  replayed = run.replay(IDS, run.routing(IDS), gates=gates)
  for logits_LV, loss, replay in zip(run.logits(IDS), run.loss(IDS), replayed, strict=True):
    np.testing.assert_array_equal(replay.logits_LV, logits_LV)
    np.testing.assert_array_equal(replay.loss.losses_L, loss.losses_L)
  one = run.replay(IDS[1], run.routing(IDS[1]), gates=gates)
  np.testing.assert_array_equal(one.logits_LV, run.logits(IDS[1]))


def test_without_each_tokens_best_expert_it_is_the_intervention_that_masks_it(monkeypatch):
  for variant, router in (('plain', ROUTERS['softmax']), ('renormalised', opened.Renormalised)):
    monkeypatch.setitem(ROUTERS, 'softmax', router)
    run = run_of(**ONE_MOE_LAYER, **{'name': variant})
    masked = run.intervene(masked_share=1 / 6)
    more = run.with_config(experts_per_token=3).routing(IDS)
    without_best = [each._replace(experts_NLK=each.experts_NLK[..., 1:]) for each in more]
    for replay, logits_LV in zip(run.replay(IDS, without_best), masked.logits(IDS), strict=True):
      np.testing.assert_array_equal(replay.logits_LV, logits_LV)
    # This also holds with several layers, if the choices are the masked model's own.
    deep = run_of(**DENSE_FIRST, **{'name': f'{variant} deep'})
    masked = deep.intervene(masked_share=1 / 6)
    replayed = deep.replay(IDS, masked.routing(IDS))
    for replay, logits_LV in zip(replayed, masked.logits(IDS), strict=True):
      np.testing.assert_array_equal(replay.logits_LV, logits_LV)


def test_an_expert_whose_gate_is_taken_is_one_that_gives_nothing():
  run, expert = run_of(**ONE_MOE_LAYER), 2
  silent = np.array(run.params['moe_blocks']['moe']['experts']['down'])
  silent[:, expert] = 0
  without = opened.with_params(
    run, lambda layer: layer | {'experts': layer['experts'] | {'down': silent}}
  )
  routing = run.routing(IDS[1])
  assert (routing.experts_NLK == expert).any()
  off = routing._replace(gates_NLK=np.where(routing.experts_NLK == expert, 0, routing.gates_NLK))
  replay = run.replay(IDS[1], off, gates=True)
  assert_close(replay.logits_LV, without.logits(IDS[1]), 1e-6)


def test_anothers_routing_and_tokens_left_to_the_router():
  run, ids = run_of(), IDS[1]
  other = run_of(**{'moe.router': 'hash', 'moe.experts_per_token': 3})
  theirs = other.routing(ids)
  replay = run.replay(ids, theirs)
  assert_close(replay.logits_LV, _by_given_experts(run, ids, theirs.experts_NLK), 2e-5)
  assert (replay.loss.losses_L != run.loss(ids).losses_L).all()
  # Only tokens from the fifth on have given experts, their own in reverse order: nothing changes
  # but rounding, and nothing at all before.
  own = run.routing(ids).experts_NLK
  mixed = np.where(np.arange(len(ids))[:, None] >= 4, own[..., ::-1], -1)
  partly = run.replay(ids, run.routing(ids)._replace(experts_NLK=mixed))
  assert (partly.logits_LV[:4] == run.logits(ids)[:4]).all()
  assert_close(partly.logits_LV, run.logits(ids), 1e-6)


def _by_given_experts(run, ids, experts_NLK):
  """logits_LV in float64, with the raw affinities to these experts as gates."""
  model, layers = run.config.model, jax.tree.map(exact, run.params['moe_blocks'])
  norm = lambda x_LD, scale_D: np.array(
    [oracles.rms_norm(x_D, scale_D, model.norm_eps) for x_D in x_LD]
  )
  expert = lambda w, *at: oracles.Expert(w['gate'][at], w['up'][at], w['down'][at])
  x_LD = exact(run.params['embedding'])[np.array(ids)]
  for n, experts_LK in enumerate(experts_NLK):
    layer = jax.tree.map(lambda x, n=n: x[n], layers)
    matrices = (layer['attention'][name] for name in ('query', 'key', 'value', 'out'))
    x_LD = x_LD + oracles.attention(
      norm(x_LD, layer['attention_norm']['scale']),
      *(np.arange(len(ids)), np.ones(len(ids)), *matrices),
      *(model.num_heads, model.num_kv_heads, model.rope_base),
    )
    y_LD = np.zeros_like(x_LD)
    for y_D, u_D, chosen in zip(y_LD, norm(x_LD, layer['ffn_norm']['scale']), experts_LK):
      affinities = oracles.softmax(layer['moe']['router']['experts'].T @ u_D)
      y_D += oracles.ffn(u_D, expert(layer['moe']['shared']))
      for e in chosen:
        y_D += affinities[e] * oracles.ffn(u_D, expert(layer['moe']['experts'], e))
    x_LD = x_LD + y_LD
  return norm(x_LD, exact(run.params['final_norm']['scale'])) @ exact(run.params['head'])


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda x: x[:, :-1], r'experts_NLK has the shape \(2, 2, 2\), and must have \(2, 3, 2\)'),
    (lambda x: x[:1], r'must have \(2, 3, 2\)'),
    (lambda x: x + 6, 'layer 0, token 0 has the experts .* they must be distinct, from 0 to 5'),
    (lambda x: x * 0, r'has the experts \[0, 0\]; they must be distinct'),
    (lambda x: x * [1, 0] - [0, 1], 'or all -1 for those of the router itself'),
    (lambda x: x.astype(float), 'experts_NLK must be whole numbers'),
    (lambda x: np.full((2, 3, 7), -1), 'routing has 7 experts a token, and must have 1 to'),
  ],
)
def test_routing_that_cannot_be_followed(change, message):
  run = run_of()
  routing = run.routing(IDS[0])
  with pytest.raises(UserError, match=message) as error:
    run.replay(IDS[0], routing._replace(experts_NLK=change(routing.experts_NLK)))
  assert '\n' not in str(error.value)
  with pytest.raises(UserError, match='routing is of 1 texts, and there are 2'):
    run.replay(IDS[:2], [routing])
  long = [1] * 13
  with pytest.raises(UserError, match='text 0 has 13 tokens, more than the context'):
    run.replay(long, run.routing(long))


# Meshes


@pytest.mark.parametrize(
  'mesh',
  [{'data': 2, 'expert': 4}, {'data': 1, 'fsdp': 2, 'expert': 2, 'tensor': 2}],
  ids=['data-expert', 'fsdp-expert-tensor'],
)
def test_eight_devices_give_the_values_of_one(mesh, data):
  sizes = {'data.batch_size': 8, 'model.num_heads': 2}
  one = run_of(data.tokenizer, **sizes)
  many = run_of(data.tokenizer, mesh, **sizes)
  assert len(jax.tree.leaves(many.params)[0].devices()) == 8
  texts = TEXTS[:3]
  assert_close(many.logits(texts), one.logits(texts), 1e-5)
  assert_close(many.hidden(texts), one.hidden(texts), 1e-5)
  assert_close(many.loss(texts), one.loss(texts), 1e-5)
  ours, theirs = many.routing(texts, affinities=True), one.routing(texts, affinities=True)
  for here, there in zip(ours, theirs, strict=True):
    assert (here.experts_NLK == there.experts_NLK).all()
    assert_close(here, there, 1e-5)
  masked = many.intervene(masked_share=1 / 6), one.intervene(masked_share=1 / 6)
  assert_close(masked[0].logits(texts), masked[1].logits(texts), 1e-5)
  for each in many.replay(texts, ours), many.replay(texts, theirs):
    assert_close([replay.logits_LV for replay in each], one.logits(texts), 1e-5)
  own = many.replay(texts, ours)
  for logits_LV, replay in zip(many.logits(texts), own, strict=True):
    np.testing.assert_array_equal(replay.logits_LV, logits_LV)
  assert many.generate(texts[:2], 6) == one.generate(texts[:2], 6)
  assert many.evaluate(data).total.loss == pytest.approx(one.evaluate(data).total.loss, rel=1e-5)


def test_a_run_opened_on_a_mesh_answers_as_it_does_on_one_device(data, tmp_path):
  config = opened.config_of(**{'data.batch_size': 8})
  with contextlib.closing(Checkpointer(tmp_path, config, data.tokenizer)) as checkpointer:
    checkpointer.save(3, small_state(config), {}, None)
    checkpointer.wait(3)
  one, many = load_for_notebook(tmp_path), load_run(tmp_path, mesh={'data': 2, 'expert': 4})
  assert one.mesh is None and many.mesh.shape['expert'] == 4 and many.step == 3
  assert_close(many.logits(TEXTS), one.logits(TEXTS), 1e-5)
  halved = load_run(tmp_path, dtype='bfloat16', mesh={'data': 2, 'expert': 4})
  assert_close(halved.logits(TEXTS), one.logits(TEXTS), 0.1)
