"""Runs that train a part of their model: frozen weights, resumption, checkpoints, and every program
that opens one.
"""

import json
import shutil

import jax
import numpy as np
import pytest

from moe.analysis.relevance import relevance
from moe.convert.from_hf import from_hf
from moe.data import given, store
from moe.finetune import select
from moe.run import load_run
from moe.storage import partial
from moe.train import train
from tests import in_process
from tests.launch.runs import programs
from tests.launch.runs.programs import CONFIG
from tests.moe.data.chat.helpers import as_row, conversation, write
from tests.small import assert_close, one_device

KEYS = {
  'evaluation.every_steps': 0,
  'checkpoint.keep_best': 0,
  'checkpoint.keep_last': 9,
  'checkpoint.every_steps': 2,
  'train.writers': '',
  'train.num_steps': 4,
  'optimizer.warmup_steps': 0,
}


@pytest.fixture(scope='module')
def chosen(data_flags, finished, tmp_path_factory):
  """The file of a choice: in each layer, the experts that together get half of the gate mass."""
  path = tmp_path_factory.mktemp('choice') / 'experts.json'
  printed = in_process.check(
    'select_experts', f'--workdir={finished}', f'--out={path}', '--mass=0.5', '--max_batches=2'
  )
  assert f'written to {path}' in printed
  return path


@pytest.fixture(scope='module')
def started(data_flags, finished, chosen, tmp_path_factory):
  """(finetune.trainable, other keys) → (workdir, config) of a run of four steps from `finished`,
  with checkpoints 0, 2 and 4.
  """

  def start(trainable, **keys):
    workdir = tmp_path_factory.mktemp(trainable) / 'run'
    part = {'finetune.trainable': trainable, 'finetune.experts': str(chosen)}
    config = programs.config(
      data_flags, **KEYS, **part, **{'train.init_from': str(finished)}, **keys
    )
    with one_device():
      train(config, workdir)
    return workdir, config

  return start


@pytest.fixture(scope='module')
def tuned(started):
  return started('experts')


def test_the_chosen_experts_alone_are_trained_and_have_state(finished, chosen, tuned):
  workdir, _ = tuned
  base, now = (partial.named(load_run(path).params) for path in (finished, workdir))
  layers = [layer['experts'] for layer in json.loads(chosen.read_text())['layers']]
  assert 0 < sum(map(len, layers)) < 8
  for name, before in base.items():
    before, after = np.asarray(before), np.asarray(now[name])
    mask = np.zeros(before.shape[:2] if 'experts' in name[:-1] else (), bool)
    for layer, experts in enumerate(layers):
      if mask.shape:
        mask[layer, experts] = True
    assert before[~mask].tobytes() == after[~mask].tobytes(), name
    if mask.any():
      assert all((a != b).any() for a, b in zip(before[mask], after[mask], strict=True)), name
  stored = partial.stored(workdir / 'checkpoints' / '4', 'training')
  moments = {name[-1]: x.shape for name, x in stored.items() if 'mu' in name}
  most = max(map(len, layers))
  assert moments == {
    'gate_chosen': (2, most, 32, 16),
    'up_chosen': (2, most, 32, 16),
    'down_chosen': (2, most, 16, 32),
  }


def test_it_goes_on_bit_for_bit_without_the_file_and_with_no_other_choice(
  tuned, chosen, tmp_path, capsys
):
  workdir, config = tuned
  copy = shutil.copytree(workdir, tmp_path / 'copy')
  shutil.rmtree(copy / 'checkpoints' / '4')
  elsewhere = shutil.move(chosen, tmp_path / 'moved.json')
  try:
    with one_device():
      train(config, copy)
  finally:
    shutil.move(elsewhere, chosen)
  printed = capsys.readouterr().out
  assert 'going on from step 2' in printed
  assert 'finetune.trainable=experts: ' in printed and 'optimizer state' in printed
  assert programs.losses(copy) == programs.losses(workdir)
  a, b = (load_run(path, 4).params for path in (copy, workdir))
  assert all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


def test_another_choice_is_refused_by_name(data_flags, finished, tuned):
  workdir, _ = tuned
  flags = [f'--config.{key}={value}' for key, value in KEYS.items()]
  flags += [f'--config.train.init_from={finished}', '--config.finetune.trainable=experts']
  line = in_process.error_line(
    *('train', CONFIG, *data_flags, f'--workdir={workdir}', *flags),
    '--config.finetune.experts=0;1',
  )
  assert "another config: finetune.experts ('" in line and "there, '0;1' now)" in line


@pytest.fixture(scope='module')
def adapted(started):
  adapters = {'finetune.lora_rank': 2, 'finetune.lora_targets': ('attention', 'experts')}
  return started('lora', **adapters)


def test_adapters_begin_as_nothing_and_alone_are_trained(finished, adapted):
  workdir, _ = adapted
  base, first, last = (load_run(*of).params for of in ((finished,), (workdir, 0), (workdir, 4)))
  assert all(map(np.array_equal, jax.tree.leaves(base), jax.tree.leaves(first)))
  changed = {n for n, x in partial.named(base).items() if (x != partial.named(last)[n]).any()}
  assert {name[-2:] for name in changed} == {
    *(('attention', name) for name in ('query', 'key', 'value', 'out')),
    *(('experts', name) for name in ('gate', 'up', 'down')),
  }
  path = workdir / 'checkpoints' / '4'
  stored = partial.stored(path, 'params')
  where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  kept = partial.read(path, 'params', dict.fromkeys(partial.named(base), where))
  assert all(np.array_equal(x, partial.named(base)[name]) for name, x in kept.items())
  adapters = {name for name in stored if '_lora_' in name[-1]}
  assert stored.keys() - kept.keys() == adapters and len(adapters) == 14
  assert {n[3:] for n in partial.stored(path, 'training') if 'mu' in n} == adapters


def test_a_run_with_adapters_goes_on_and_is_exported_and_started_from_merged(
  data_flags, adapted, tmp_path, capsys
):
  workdir, config = adapted
  copy = shutil.copytree(workdir, tmp_path / 'copy')
  shutil.rmtree(copy / 'checkpoints' / '4')
  with one_device():
    train(config, copy)
  assert programs.losses(copy) == programs.losses(workdir)
  theirs = load_run(workdir)
  told = json.loads(in_process.check('evaluate', f'--workdir={workdir}', '--format=json'))
  logged = programs.lines(workdir)[-1]['held_out_loss']
  assert told['total']['loss'] == pytest.approx(logged, rel=1e-5)
  in_process.check('convert', '--to=hf', f'--workdir={workdir}', f'--out={tmp_path / "hf"}')
  from_hf(tmp_path / 'hf', tmp_path / 'back')
  assert_close(load_run(tmp_path / 'back').params, theirs.params, 1e-6)
  flags = [f'--config.{key}={value}' for key, value in (KEYS | {'train.num_steps': 1}).items()]
  new = tmp_path / 'new'
  line = in_process.check(
    *('train', CONFIG, *data_flags, *flags, f'--workdir={new}'),
    f'--config.train.init_from={workdir}',
  )
  assert 'its 7 adapters are merged into their matrices' in line
  started = load_run(new, 0).params
  assert all(map(np.array_equal, jax.tree.leaves(started), jax.tree.leaves(theirs.params)))


def test_state_of_another_part_is_not_taken(data_flags, tuned, tmp_path):
  flags = [f'--config.{key}={value}' for key, value in KEYS.items()]
  line = in_process.error_line(
    *('train', CONFIG, *data_flags, *flags, f'--workdir={tmp_path / "run"}'),
    *(f'--config.train.init_from={tuned[0]}', '--config.train.init_optimizer=True'),
  )
  assert "the state of other parameters: finetune.experts ('" in line


def test_programs_open_it(tuned, tmp_path):
  workdir, _ = tuned
  told = json.loads(in_process.check('evaluate', f'--workdir={workdir}', '--format=json'))
  assert told['step'] == 4
  in_process.check('generate', f'--workdir={workdir}', '--prompt=the', '--max_new_tokens=4')
  in_process.check('convert', '--to=hf', f'--workdir={workdir}', f'--out={tmp_path / "hf"}')


def test_scores_are_those_of_a_loop_over_the_texts(finished, data_flags):
  run = load_run(finished)
  data = store.open_held_out(programs.config(data_flags).data.dir, run.tokenizer)
  sums, texts = np.zeros((2, 2, 4)), []
  for domain in data.held_out_domains:
    documents = data.documents(store.HELD_OUT, domain)
    texts += [run.tokenizer.decode(documents.document(i)) for i in range(len(documents))]
  for routing in run.routing(texts):
    for layer, (experts_LK, gates_LK) in enumerate(zip(*routing[:2], strict=True)):
      for expert, gate in zip(experts_LK.ravel(), gates_LK.ravel(), strict=True):
        sums[:, layer, expert] += gate, 1
  found = relevance(run.config, run.params, data)
  assert found.tokens == sum(len(run.tokens(text)) for text in texts)
  assert (found.counts_NE == sums[1]).all()
  np.testing.assert_allclose(found.gates_NE, sums[0], rtol=1e-5)
  for by, sums_NE in zip(('gate', 'share'), sums, strict=True):
    shares = sums_NE / sums_NE.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(select.scores(found, by), shares, rtol=1e-5)


def test_the_fewest_that_reach_the_mass():
  of = lambda mass: select.of_layer(np.array([0.1, 0.4, 0.1, 0.4]), mass).experts
  assert of(0.4) == [1] and of(0.41) == [1, 3] and of(0.8) == [1, 3] and of(0.85) == [1, 3, 0]
  assert of(1.0) == [1, 3, 0, 2]


def test_drawn_are_as_many_as_chosen(finished, data_flags):
  run = load_run(finished)
  data = store.open_held_out(programs.config(data_flags).data.dir, run.tokenizer)
  chosen, drawn, again, others = (
    select.select(run, data, by, 0.5, max_batches=1, seed=seed)[0]
    for by, seed in (('gate', 0), ('random', 0), ('random', 0), ('random', 1))
  )
  assert drawn == again
  for layers in (drawn, others):
    assert [len(layer.experts) for layer in layers] == [len(layer.experts) for layer in chosen]
    assert all(len(set(layer.experts)) == len(layer.experts) for layer in layers)
  generator, seen = np.random.default_rng(0), set()
  for _ in range(40):
    seen |= set(select.drawn(np.array([0.7, 0.1, 0.1, 0.1]), 1, generator).experts)
  assert seen == {0, 1, 2, 3}


def test_the_file_says_what_it_is_made_of(finished, chosen):
  content = json.loads(chosen.read_text())
  assert content['by'] == 'gate' and content['mass'] == 0.5 and content['tokens'] > 0
  assert content['checkpoint']['path'] == str(finished.resolve())
  assert content['checkpoint']['step'] == 40
  for number, layer in enumerate(content['layers']):
    assert layer['layer'] == number and layer['scores'] == sorted(layer['scores'], reverse=True)
    assert layer['sum'] >= 0.5 > layer['sum'] - layer['scores'][-1]


def test_of_conversations_the_replies_are_scored(finished, tmp_path):
  rows = [as_row(conversation(number)) for number in range(6)]
  sources, out = f'a={write(tmp_path / "a.jsonl", rows)}', tmp_path / 'out.json'
  printed = in_process.check(
    'select_experts', f'--workdir={finished}', f'--out={out}', f'--sources={sources}', '--chat'
  )
  run = select.reading(load_run(finished), True)
  data = given.open_given(sources, run.config.data, run.tokenizer)
  content = json.loads(out.read_text())
  assert content['tokens'] == data.totals(store.HELD_OUT, 'a')['learnt'] > 0
  assert content['text'] == sources and f'{content["tokens"]:,} tokens' in printed


@pytest.mark.parametrize(
  ('flags', 'words'),
  [
    (['--chat'], '--chat says what --sources are'),
    (['--mass=0'], '--mass=0.0 must be above 0 and at most 1'),
    (['--mass=1.5'], '--mass=1.5 must be above 0 and at most 1'),
    (['--by=loss'], 'value should be one of <gate|share|random>'),
    (['--sources=a=/nowhere/*.txt'], '/nowhere/*.txt'),
    (['--step=7'], 'no checkpoint of step 7'),
  ],
)
def test_bad_input_of_select_experts_is_one_line(finished, tmp_path, flags, words):
  out = tmp_path / 'out.json'
  line = in_process.error_line('select_experts', f'--workdir={finished}', f'--out={out}', *flags)
  assert words in line and not out.exists()
