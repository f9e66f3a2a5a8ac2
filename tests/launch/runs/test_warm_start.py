"""Runs from another run's weights: what they take, what is refused, and that they never need the
source again.
"""

import dataclasses
import json
import shutil
import signal

import jax
import ml_dtypes
import numpy as np
import pytest

from experiments.notebooks import released
from moe.config import from_stored
from moe.convert.from_hf import from_hf
from moe.errors import UserError
from moe.model import init_params
from moe.run import load_run
from moe.storage import partial, provenance
from moe.train import train
from moe.warm_start.source import parse
from tests import in_process
from tests.launch.runs import programs
from tests.launch.runs.programs import CONFIG
from tests.small import one_device

QUIET = {
  'evaluation.every_steps': 0,
  'checkpoint.keep_best': 0,
  'train.writers': '',
  'checkpoint.keep_last': 9,
}


def _train(data_flags, workdir, **overrides):
  """Trains a warm-started run for a few steps on one device; returns the logged lines."""
  short = {'train.num_steps': 2, 'optimizer.warmup_steps': 0}
  with one_device():
    train(programs.config(data_flags, **QUIET, **{**short, **overrides}), workdir)
  return programs.lines(workdir)


def _flags(data_flags, workdir, *more):
  quiet = [f'--config.{key}={value}' for key, value in QUIET.items()]
  return CONFIG, *data_flags, *quiet, '--config.train.num_steps=2', f'--workdir={workdir}', *more


def _named(tree):
  return {jax.tree_util.keystr(p): x for p, x in jax.tree_util.tree_leaves_with_path(tree)}


def _same(a, b):
  a, b = _named(a), _named(b)
  return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


@pytest.fixture
def source(finished, tmp_path):
  """A copy of the finished run, to be deleted and damaged."""
  return shutil.copytree(finished, tmp_path / 'source')


@pytest.mark.parametrize(
  'spec, meaning',
  [
    ('runs/a', ('runs/a', None)),
    ('runs/a:40', ('runs/a', 40)),
    ('runs/a:40:', ('runs/a:40', None)),
    ('runs/a:40:30', ('runs/a:40', 30)),
    ('runs/a:b', ('runs/a:b', None)),
    ('gs://bucket/run', ('gs://bucket/run', None)),
    ('gs://bucket/run:7', ('gs://bucket/run', 7)),
  ],
)
def test_the_last_colon_followed_by_digits_names_the_step(spec, meaning):
  assert parse(spec) == meaning


def test_starts_from_the_very_weights_with_other_router_options_and_data_seed(
  data_flags, finished, tmp_path, capsys
):
  workdir = tmp_path / 'run'
  options = {
    'moe.experts_per_token': 1,
    'moe.expert_balance_weight': 0.3,
    'data.batch_size': 2,
    'data.seed': 5,
    'train.init_from': str(finished),
  }
  logged = _train(data_flags, workdir, **options)
  assert [line['step'] for line in logged] == [1, 2]
  first, theirs = load_run(workdir, 0), load_run(finished)
  assert _same(first.params, theirs.params)
  assert not _same(load_run(workdir).params, theirs.params)
  identity = provenance.source(workdir)
  assert identity['path'] == str(finished.resolve()) and identity['step'] == 40
  assert f'warm start from {finished}, step 40 (checksum {identity["checksum"]})' in (
    capsys.readouterr().out
  )
  told = json.loads(in_process.check('evaluate', f'--workdir={workdir}', '--format=json'))
  assert told['init_from'] == identity
  assert identity['checksum'] in in_process.check('evaluate', f'--workdir={workdir}')
  assert (
    json.loads(in_process.check('evaluate', f'--workdir={finished}', '--format=json'))['init_from']
    is None
  )


def test_the_first_loss_is_that_of_the_source_and_a_step_can_be_named(
  data_flags, finished, tmp_path
):
  """At step 0 the new run has the weights of the source's step 30, and scores the same."""
  _train(data_flags, tmp_path / 'run', **{'train.init_from': f'{finished}:30'})
  taken = load_run(tmp_path / 'run', 0)
  assert _same(taken.params, load_run(finished, 30).params)
  scored = [
    json.loads(in_process.check('evaluate', f'--workdir={run}', f'--step={step}', '--format=json'))
    for run, step in ((tmp_path / 'run', 0), (finished, 30))
  ]
  assert scored[0]['domains'] == scored[1]['domains']


def test_a_fork_in_mid_schedule_takes_its_parents_next_steps_bit_for_bit(
  data_flags, finished, tmp_path
):
  fork = {
    'train.init_from': f'{finished}:30',
    'train.init_optimizer': True,
    'train.init_data': True,
    'optimizer.warmup_steps': 10,
    'optimizer.start_step': 30,
    'train.num_steps': 10,
  }
  ours, theirs = _train(data_flags, tmp_path / 'fork', **fork), programs.lines(finished)[30:]
  assert [line['step'] for line in ours] == list(range(1, 11))
  for name in ('loss', 'objective', 'gradient_norm', 'learning_rate', 'max_vio_N'):
    assert [line[name] for line in ours] == [line[name] for line in theirs], name
  assert _same(load_run(tmp_path / 'fork').params, load_run(finished).params)
  # Without its parent's moments it is another run.
  cold = _train(data_flags, tmp_path / 'cold', **{**fork, 'train.init_optimizer': False})
  assert cold[0]['loss'] == theirs[0]['loss'] and cold[-1]['loss'] != theirs[-1]['loss']
  # With its moments but not its place in the data, it reads the text from the beginning.
  again = _train(data_flags, tmp_path / 'again', **{**fork, 'train.init_data': False})
  assert again[0]['loss'] != theirs[0]['loss']


def test_a_killed_run_goes_on_bit_for_bit_without_its_source(data_flags, source, tmp_path):
  flags = lambda workdir: _flags(
    data_flags,
    workdir,
    f'--config.train.init_from={source}',
    '--config.train.init_optimizer=True',
    '--config.train.num_steps=16',
  )
  whole, killed = tmp_path / 'whole', tmp_path / 'killed'
  in_process.check('train', *flags(whole))
  # Killed when the only checkpoint is that of step 0.
  code, output = programs.interrupt(signal.SIGKILL, killed, 1, *flags(killed))
  assert code == -signal.SIGKILL, output
  identity = provenance.source(killed)
  shutil.rmtree(source)
  assert 'going on from step 0' in in_process.check('train', *flags(killed))
  assert programs.losses(killed) == programs.losses(whole)
  assert provenance.source(killed) == identity


def test_a_source_may_move_but_another_is_refused_by_name(data_flags, source, finished, tmp_path):
  workdir, moved = tmp_path / 'run', tmp_path / 'moved'
  flags = lambda spec: _flags(data_flags, workdir, f'--config.train.init_from={spec}')
  in_process.check('train', *flags(source))
  stored = (workdir / 'config.json').read_bytes()
  source.rename(moved)
  for spec in (source, moved, f'{moved}:40'):
    assert 'is finished' in in_process.check('train', *flags(spec))
    assert (workdir / 'config.json').read_bytes() == stored
  for spec in (f'{finished}:30', tmp_path / 'nowhere'):
    line = in_process.error_line('train', *flags(spec))
    assert f"train.init_from ('{source}' there, '{spec}' now)" in line


def test_another_mesh_takes_the_same_weights_each_device_its_part(
  data_flags, finished, tmp_path, monkeypatch
):
  read = []
  original = partial.read

  def look(*args):
    arrays = original(*args)
    parts = lambda x: {shard.data.shape for shard in x.addressable_shards}
    read.append({name: (x.shape, parts(x)) for name, x in arrays.items()})
    return arrays

  monkeypatch.setattr(partial, 'read', look)
  config = programs.config(
    data_flags,
    **QUIET,
    **{
      'train.init_from': str(finished),
      'train.init_optimizer': True,
      'train.num_steps': 1,
      'mesh.data': 1,
      'mesh.fsdp': 2,
      'mesh.expert': 4,
      'data.batch_size': 8,
    },
  )
  train(config, tmp_path / 'run')
  assert _same(load_run(tmp_path / 'run', 0).params, load_run(finished).params)
  params, training = read
  experts = ('moe_blocks', 'moe', 'experts', 'up')
  for arrays, name in ((params, experts), (training, ('optimizer_state', '0', 'mu', *experts))):
    # A quarter of the experts, half of their width.
    assert arrays[name] == ((2, 4, 32, 16), {(2, 1, 16, 16)})


def test_what_is_skipped_is_initialised_as_in_a_run_of_its_own(data_flags, finished, tmp_path):
  patterns = ('*/router/*', 'final_norm/scale')
  start = {'train.init_from': str(finished), 'train.init_skip': patterns, 'train.num_steps': 1}
  start |= {'train.init_optimizer': True}
  _train(data_flags, tmp_path / 'run', **start)
  # Compiled, as in training: op by op, the numbers round differently.
  config = load_run(finished).config
  fresh = jax.jit(lambda: init_params(config, jax.random.key(config.train.seed)))()
  ours, theirs = _named(load_run(tmp_path / 'run', 0).params), _named(load_run(finished).params)
  for name, x in _named(fresh).items():
    is_new = 'router' in name or 'final_norm' in name
    assert np.array_equal(ours[name], x if is_new else theirs[name]), name


def test_a_hash_router_leaves_the_learnt_one_out(data_flags, finished, tmp_path):
  start = {'train.init_from': str(finished), 'moe.router': 'hash'}
  with pytest.raises(UserError) as refused:
    _train(data_flags, tmp_path / 'refused', **start)
  assert str(refused.value).startswith(
    f'train.init_from={finished}: step 40 has other parameters than this config: moe.router '
    "('softmax' there, 'hash' here): moe_blocks/moe/router/experts (2, 32, 4) there, absent here"
  )
  assert not (tmp_path / 'refused').exists()
  _train(data_flags, tmp_path / 'run', **start, **{'train.init_skip': ('*/router/*',)})
  assert not any('router' in name for name in _named(load_run(tmp_path / 'run', 0).params))


def test_new_text_is_prepared_with_the_sources_tokenizer(finished, tmp_path):
  text = tmp_path / 'other.txt'
  text.write_text('\n'.join(f'another text of {n} words and no end' for n in range(400)))
  flags = (
    *(CONFIG, f'--config.data.sources=other={text}', '--config.data.holdout=0.1'),
    *('--config.train.num_steps=1', f'--config.train.init_from={finished}'),
    *('--config.data.separator=\\n', f'--workdir={tmp_path / "run"}'),
  )
  in_process.check('train', *flags)
  model = (finished / 'tokenizer.model').read_bytes()
  assert (tmp_path / 'run' / 'tokenizer.model').read_bytes() == model
  # Going on opens the same data, and prepares it again from the run's own tokenizer.
  assert 'is finished' in in_process.check('train', *flags)
  shutil.rmtree(tmp_path / 'run' / 'data')
  assert 'is finished' in in_process.check('train', *flags)
  assert (tmp_path / 'run' / 'data' / 'tokenizer.model').read_bytes() == model
  prepared = (*flags[:-1], f'--out={tmp_path / "prepared"}')
  in_process.check('prepare_data', *prepared)
  assert (tmp_path / 'prepared' / 'tokenizer.model').read_bytes() == model


def test_another_tokenizer_needs_new_parameters_of_the_vocabulary(finished, tmp_path):
  text = tmp_path / 'other.txt'
  text.write_text('\n'.join(f'another text of {n} words and no end' for n in range(400)))
  own = (CONFIG, '--config.data.holdout=0.1', '--config.data.separator=\\n')
  own = (*own, f'--config.data.sources=other={text}', '--config.train.num_steps=1')
  in_process.check('prepare_data', *own, f'--out={tmp_path / "own"}')
  model = tmp_path / 'own' / 'tokenizer.model'
  warm = (*own, f'--config.train.init_from={finished}', f'--config.data.tokenizer={model}')
  line = in_process.error_line('train', *warm, f'--workdir={tmp_path / "run"}')
  assert f'another tokenizer than data.tokenizer={model}' in line
  assert 'list embedding, head in train.init_skip' in line
  assert not (tmp_path / 'run').exists()
  skip = "--config.train.init_skip=('embedding','head')"
  in_process.check('train', *warm, skip, f'--workdir={tmp_path / "run"}')
  assert (tmp_path / 'run' / 'tokenizer.model').read_bytes() == model.read_bytes()


@pytest.mark.parametrize(
  'flags, words',
  [
    (['--config.train.init_from={tmp}/nowhere'], 'there is no folder {tmp}/nowhere'),
    (
      ['--config.train.init_from={tmp}/nowhere:3'],
      'a folder of that name is written {tmp}/nowhere:3:',
    ),
    (['--config.train.init_from={tmp}'], 'there is no checkpoint in {tmp}/checkpoints'),
    (
      ['--config.train.init_from={source}:7'],
      'no checkpoint of step 7 in {source}; there are 30, 40',
    ),
    (['--config.train.init_from={tmp}/run', '--mkdir'], 'is this run itself'),
    (['--config.train.init_from=a*'], "train.init_from=a*: '*' in"),
    (
      ['--config.train.init_from={source}', '--config.model.d_model=64'],
      'other parameters than this config: model.d_model (32 there, 64 here): embedding (320, 32) '
      'there, (320, 64) here, final_norm/scale (32,) there, (64,) here, head',
    ),
    (
      [
        '--config.train.init_from={source}',
        '--config.moe.d_expert=24',
        '--config.model.head_dim=8',
      ],
      'moe.d_expert (16 there, 24 here): moe_blocks/moe/experts/down (2, 4, 16, 32) there, '
      '(2, 4, 24, 32) here',
    ),
    (
      ['--config.train.init_from={source}', "--config.train.init_skip=('head', '*ruoter*')"],
      "train.init_skip: '*ruoter*' matches no parameter: there are embedding, final_norm/scale",
    ),
    (['--config.train.init_from={source}', '--config.train.init_skip=*'], 'leaves nothing to take'),
    (["--config.train.init_skip=('head',)"], 'needs train.init_from'),
    (['--config.train.init_optimizer=True'], 'train.init_optimizer=True needs train.init_from'),
    (
      [
        *('--config.train.init_from={source}', '--config.train.init_data=True'),
        *('--config.data.batch_size=2', '--config.data.seed=3'),
      ],
      'data.seed (0 there, 3 here), data.batch_size (4 there, 2 here); use those values',
    ),
  ],
)
def test_bad_input_is_one_line_and_leaves_nothing(data_flags, finished, tmp_path, flags, words):
  source = tmp_path / 'source'
  shutil.copytree(finished, source)
  for path in (source / 'checkpoints').iterdir():
    if path.name not in ('30', '40'):
      shutil.rmtree(path)
  if '--mkdir' in flags:
    (tmp_path / 'run').mkdir()
  there = {'tmp': tmp_path, 'source': source}
  given = [flag.format(**there) for flag in flags if flag != '--mkdir']
  line = in_process.error_line('train', *_flags(data_flags, tmp_path / 'run', *given))
  assert words.format(**there) in line
  assert not (tmp_path / 'run').exists() or not list((tmp_path / 'run').iterdir())


def test_weights_without_optimizer_state_give_none(data_flags, source, tmp_path):
  """A source may have weights only, as a converted run does."""
  step = source / 'checkpoints' / '40'
  sums = json.loads((step / 'checksums' / 'metadata').read_text())
  for item in ('training', 'data'):
    shutil.rmtree(step / item)
    sums.pop(item)
  (step / 'checksums' / 'metadata').write_text(json.dumps(sums))
  for key in ('init_optimizer', 'init_data'):
    given = (f'--config.train.init_from={source}:40', f'--config.train.{key}=True')
    line = in_process.error_line('train', *_flags(data_flags, tmp_path / 'run', *given))
    assert f'train.{key}' in line and 'holds weights only' in line
    assert not (tmp_path / 'run').exists()
  _train(data_flags, tmp_path / 'run', **{'train.init_from': f'{source}:40'})
  assert _same(load_run(tmp_path / 'run', 0).params, load_run(source, 40).params)


def test_converted_weights_are_cast_to_the_type_of_parameters(
  data_flags, finished, tmp_path, capsys
):
  hf = released.DEEPSEEK | {'vocab_size': 320, 'torch_dtype': 'bfloat16'}
  weights = released.tensors(hf, dtype=ml_dtypes.bfloat16)
  converted = tmp_path / 'converted'
  from_hf(released.write(tmp_path / 'hf', hf, weights), converted)
  config = from_stored(json.loads((converted / 'config.json').read_text()), 'config.json')
  ours = programs.config(data_flags, **QUIET, **{'train.num_steps': 1})
  start = dataclasses.replace(ours.train, init_from=str(converted))
  config = dataclasses.replace(
    ours, model=dataclasses.replace(config.model, dtype='float32'), moe=config.moe, train=start
  )
  with one_device():
    with pytest.raises(UserError, match=r'has no tokenizer: give data\.tokenizer'):
      train(config, tmp_path / 'refused')
    data = dataclasses.replace(
      config.data, tokenizer=str(finished / 'tokenizer.model'), dir=str(tmp_path / 'data')
    )
    train(dataclasses.replace(config, data=data), tmp_path / 'run')
  assert 'parameters stored in bfloat16 are cast to float32' in capsys.readouterr().out
  taken = load_run(tmp_path / 'run', 0).params
  assert {str(x.dtype) for x in jax.tree.leaves(taken)} == {'float32'}
  assert _same(taken, load_run(converted, dtype='float32').params)


def test_a_damaged_step_is_passed_over_unless_it_is_named(data_flags, source, tmp_path):
  files = [p for p in (source / 'checkpoints' / '40' / 'params').rglob('*') if p.is_file()]
  largest = max(files, key=lambda path: path.stat().st_size)
  content = bytearray(largest.read_bytes())
  content[len(content) // 2] ^= 4
  largest.write_bytes(content)
  named = f'--config.train.init_from={source}:40'
  done = in_process.run('train', *_flags(data_flags, tmp_path / 'named', named))
  assert done.returncode == 2 and f'train.init_from: step 40 in {source}' in done.stderr
  _train(data_flags, tmp_path / 'run', **{'train.init_from': str(source)})
  assert provenance.source(tmp_path / 'run')['step'] == 30
  assert _same(load_run(tmp_path / 'run', 0).params, load_run(source, 30).params)
