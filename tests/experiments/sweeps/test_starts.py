"""Runs that start from other runs' weights: what they are called, what they wait for."""

import dataclasses
import subprocess
import sys
import types
from pathlib import Path

import pytest

from experiments.studies.common import Run, Start
from experiments.sweeps import local, plan, shares, starts, sweep
from experiments.sweeps.view import View
from moe.errors import UserError
from tests.experiments.sweeps.jobs import CONFIG, jobs_of

_DENSE = {
  'model.num_dense_layers': 2,
  'model.d_ff': 16,
  'moe.num_experts': 0,
  'moe.experts_per_token': 0,
  'moe.expert_balance_weight': 0.0,
  'train.num_steps': 8,
}
_RUNS = (
  Run('dense', CONFIG, _DENSE),
  Run('scratch', CONFIG),
  Run('on', CONFIG, _DENSE | {'train.num_steps': 40}, start=Start('dense')),
  Run('upcycled', CONFIG, start=Start('dense', 'even')),
  Run('further', CONFIG, start=Start('upcycled')),
  Run('a few experts', CONFIG, start=Start('scratch', experts='gate')),
)


def _trained(job):
  (job.workdir / 'checkpoints' / str(job.num_steps)).mkdir(parents=True, exist_ok=True)


def test_a_start_is_named_by_its_settings_and_found_by_its_place(tmp_path):
  every = jobs_of(tmp_path / 'here', *_RUNS)
  dense, scratch, on, upcycled, further, few = every
  there = plan.jobs(
    plan.Study('study.py', lambda scale: _RUNS), None, [0, 1], {}, tmp_path / 'there'
  )
  hashes = [job.config_hash for job in every]
  assert [job.config_hash for job in there] == hashes * 2 and len(set(hashes)) == 6
  assert on.config.train.init_from == str(dense.workdir)
  assert upcycled.config.train.init_from == str(upcycled.workdir / 'start')
  assert further.config.train.init_from == str(upcycled.workdir)
  assert further.values['train.init_from'] == f'weights of {upcycled.config_hash}'
  assert len({job.data_dir for job in every}) == 1
  assert few.values['finetune.experts'] == f'by gate of {scratch.config_hash}'
  command = ' '.join(upcycled.arguments('convert'))
  assert f'--upcycle={dense.workdir} --router=even --seed=0' in command
  assert f'--workdir={upcycled.workdir}/start' in command
  assert 'init_from' not in command
  assert f'--config.train.init_from={upcycled.workdir}/start' in upcycled.arguments('train')
  assert not any('init_from' in flag for flag in on.arguments('prepare_data'))
  # The experts are not chosen yet.
  assert not any('finetune' in flag for flag in few.arguments('prepare_data'))
  command = ' '.join(few.arguments('select_experts'))
  assert f'--workdir={scratch.workdir} --out={few.workdir}/experts.json --by=gate' in command
  assert f'--sources={few.config.data.sources} --chat=false' in command
  assert f'--config.finetune.experts={few.workdir}/experts.json' in few.arguments('train')


def test_a_start_on_other_text_has_the_tokenizer_of_the_first(tmp_path):
  other = _DENSE | {'data.sources': 'other=b.txt'}
  runs = (_RUNS[0], Run('other', CONFIG, other, start=Start('dense')), Run('alone', CONFIG, other))
  dense, tuned, alone = jobs_of(tmp_path / 'here', *runs)
  assert tuned.config.data.tokenizer == str(dense.data_dir / 'tokenizer.model')
  assert len({dense.data_dir, tuned.data_dir, alone.data_dir}) == 3
  # The tokenizer is named by its run's settings, not by its place, as the start itself is.
  assert jobs_of(tmp_path / 'there', *runs)[1].config_hash == tuned.config_hash
  assert not any(str(tmp_path) in str(value) for value in _names(tuned).values())
  assert f'--start={dense.workdir}' in local.score_arguments(tuned)
  assert not any('--start' in each for each in local.score_arguments(alone))


def _names(job):
  return {key: job.values[key] for key in ('train.init_from', 'data.tokenizer')}


def test_another_start_is_another_run(tmp_path):
  with_ = lambda start, **dense: (
    jobs_of(tmp_path, Run('dense', CONFIG, _DENSE | dense), Run('b', CONFIG, start=start))[
      1
    ].config_hash
  )
  hashes = [with_(None), with_(Start('dense', 'even')), with_(Start('dense', 'random'))]
  hashes += [with_(Start('dense', 'even', experts)) for experts in ('gate', 'random')]
  hashes += [with_(Start('dense', 'even'), **{'train.num_steps': 9})]
  assert len(set(hashes)) == 6


def test_a_text_is_named_by_the_tokenizer_it_has_wherever_that_lies(tmp_path):
  """The third run's tokenizer is the second's, which is the first's."""
  other = lambda name: _DENSE | {'data.sources': f'{name}={name}.txt'}
  runs = (
    _RUNS[0],
    Run('b', CONFIG, other('b'), start=Start('dense')),
    Run('c', CONFIG, other('c'), start=Start('b')),
  )
  here, there = (jobs_of(tmp_path / place, *runs) for place in ('here', 'there'))
  assert [job.config_hash for job in here] == [job.config_hash for job in there]


@pytest.mark.parametrize(
  ('run', 'message'),
  [
    (Run('b', CONFIG, start=Start('a')), "run 'b' .*from the run 'a', which is not listed before"),
    (Run('b', CONFIG, start='dense'), "run 'b' .*start must be a Start, not 'dense'"),
    (Run('b', CONFIG, start=Start('dense', 'odd')), "start.upcycle must be .*not 'odd'"),
    (Run('b', CONFIG, start=Start('dense', experts='odd')), "start.experts must be .*not 'odd'"),
    (
      Run('b', CONFIG, {'model.vocab_size': 400}, start=Start('dense')),
      "from the run 'dense', of another model.vocab_size",
    ),
    (
      Run('b', CONFIG, {'data.sources': 'other=b.txt'}, start=Start('dense', 'even')),
      "upcycled from the run 'dense', of other text or vocabulary",
    ),
    (
      Run(
        'b',
        CONFIG,
        _DENSE | {'data.sources': 'b=b.txt', 'data.tokenizer': 'x'},
        start=Start('dense'),
      ),
      "data.tokenizer=x is set for a run that has that of 'dense'",
    ),
    (
      Run('b', CONFIG, {'train.init_from': 'DIR'}, start=Start('dense')),
      'train.init_from=DIR is set for a run that has a start',
    ),
    (
      Run('b', CONFIG, {'finetune.experts': '0;1'}, start=Start('dense', experts='gate')),
      'finetune.experts=0;1 is set for a run whose start chooses them',
    ),
  ],
)
def test_a_start_that_cannot_be_is_found_before_training(run, message, tmp_path):
  with pytest.raises(UserError, match=message):
    jobs_of(tmp_path, _RUNS[0], run)


@pytest.mark.parametrize(
  ('run', 'message'),
  [
    (
      Run('b', CONFIG, _DENSE | {'model.d_model': 48}, start=Start('dense')),
      r'^b, seed 0: the run dense, seed 0 has other parameters than this config: model.d_model',
    ),
    (
      Run('b', CONFIG, start=Start('dense')),
      '^b, seed 0: the run dense, seed 0 has other parameters .*train.init_skip',
    ),
    (
      Run('b', CONFIG, start=Start('scratch', 'even')),
      '^b, seed 0: the run scratch, seed 0 has experts already .*--upcycle takes a dense run',
    ),
    (
      Run('b', CONFIG, {'moe.d_expert': 1}, start=Start('dense', 'even')),
      '^b, seed 0: moe.num_shared_experts=.*cannot hold the FFN: give it more or wider experts',
    ),
    (
      Run(
        'b',
        CONFIG,
        {'finetune.trainable': 'lora', 'finetune.lora_rank': 2},
        start=Start('dense', 'even'),
      ),
      '^b, seed 0: finetune.lora_rank=2 goes with finetune.trainable',
    ),
    (
      Run('b', CONFIG, _DENSE | {'train.init_skip': ('*x',)}, start=Start('dense')),
      "^b, seed 0: train.init_skip: '.x' matches no parameter",
    ),
    (
      Run(
        'b',
        CONFIG,
        {'train.init_optimizer': True, 'finetune.trainable': 'router_frozen'},
        start=Start('scratch'),
      ),
      'train.init_optimizer: the run scratch, seed 0 has the state of other parameters: finetune',
    ),
    (
      Run(
        'b',
        CONFIG,
        _DENSE | {'train.init_data': True, 'data.batch_size': 2},
        start=Start('dense'),
      ),
      'train.init_data: the run dense, seed 0 has its place in other batches: data.batch_size',
    ),
  ],
)
def test_a_start_that_will_not_fit_is_found_before_its_origin_is_trained(run, message, tmp_path):
  *_, job = jobs_of(tmp_path, *_RUNS[:2], run)
  with pytest.raises(UserError, match=message):
    starts.check([job])


def test_starts_that_fit_are_checked_without_a_device(tmp_path):
  starts.check([job for job in jobs_of(tmp_path, *_RUNS) if job.origin])
  program = (
    'from experiments.sweeps import plan, starts\n'
    'from pathlib import Path\n'
    "study = plan.load('experiments/studies/esft.py')\n"
    "jobs = plan.jobs(study, plan.common.LONG, [0], {}, Path('none'))\n"
    'starts.check([job for job in jobs if job.origin])\n'
    'from jax._src import xla_bridge\n'
    'assert not xla_bridge.backends_are_initialized()\n'
  )
  done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True)
  assert done.returncode == 0, done.stderr


def test_a_start_goes_with_what_needs_one(tmp_path):
  more = {'train.init_optimizer': True, 'train.init_skip': ('*router*',)}
  *_, job = jobs_of(tmp_path, _RUNS[0], Run('b', CONFIG, _DENSE | more, start=Start('dense')))
  assert {'--config.train.init_optimizer=True', "--config.train.init_skip=('*router*',)"} <= {
    *job.flags
  }


@pytest.mark.parametrize('goes_well', [True, False])
def test_a_run_waits_for_what_it_starts_from(goes_well, tmp_path, monkeypatch):
  """`dense` succeeds or fails; a program's output appears when the program ends."""
  monkeypatch.setattr(local.machine, 'commit', lambda: 'unknown')
  jobs, started = jobs_of(tmp_path, *_RUNS), []

  def start(arguments, log, share):
    del log, share
    flag = '--out=' if 'launch.select_experts' in arguments else '--workdir='
    place = next(Path(each[len(flag) :]) for each in arguments if each.startswith(flag))
    job = next(job for job in jobs if job.workdir in (place, place.parent))
    program, name = arguments[1].rpartition('.')[2], job.runs[0].name
    started.append((program, name))
    fails = name == 'dense' and not goes_well

    def poll():
      if program == 'convert':
        place.mkdir(parents=True, exist_ok=True)
      elif program == 'select_experts':
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
      elif program == 'train' and not fails:
        _trained(job)
      return int(fails)

    return types.SimpleNamespace(poll=poll, returncode=int(fails))

  tasks = [local.Task(job) for job in jobs]
  at_hand = types.SimpleNamespace(stopped_by=None, start=start)
  local.run(tasks, shares.deal(2), at_hand, lambda job: '', View(tasks))
  states = {task.job.runs[0].name: task.state for task in tasks}
  if not goes_well:
    assert states.pop('scratch') == states.pop('a few experts') == 'finished'
    assert set(states.values()) == {'failed'}
    assert [task.note for task in tasks[2:5]] == [
      f'it starts from {name}, seed 0, which has not been trained'
      for name in ('dense', 'dense', 'upcycled')
    ]
    return
  assert set(states.values()) == {'finished'}
  at = [each for each in started if each[0] != 'score'].index
  assert at(('train', 'dense')) < at(('convert', 'upcycled')) < at(('train', 'upcycled'))
  assert at(('train', 'upcycled')) < at(('train', 'further'))
  assert at(('train', 'dense')) < at(('train', 'on'))
  assert ('convert', 'on') not in started
  chosen = at(('select_experts', 'a few experts'))
  assert at(('train', 'scratch')) < chosen < at(('train', 'a few experts'))


def test_a_preparation_that_makes_nothing_is_not_started_again(tmp_path):
  dense, upcycled = jobs_of(tmp_path, _RUNS[0], _RUNS[3])
  _trained(dense)
  started = []

  def start(arguments, log, share):
    started.append(arguments[1])
    return types.SimpleNamespace(poll=lambda: 0, returncode=0)

  task = local.Task(upcycled)
  at_hand = types.SimpleNamespace(stopped_by=None, start=start)
  local.run([task], shares.deal(1), at_hand, lambda job: '', View([task]))
  assert started == ['launch.convert'] and task.state == 'failed'
  assert 'launch.convert succeeded but did not write its output' in task.note


def test_what_is_started_from_is_trained_though_its_line_is_there(tmp_path, monkeypatch, capsys):
  """As on a fresh clone, which has the lines but not the runs."""
  study = plan.Study('study.py', lambda scale: _RUNS[:3])
  monkeypatch.setattr(sweep.plan, 'load', lambda path: study)
  lacking = lambda job, lines: [] if job.runs[0].name == 'dense' else list(job.runs)
  monkeypatch.setattr(sweep.ledger, 'missing', lacking)
  options = sweep.Options('study', seeds=1, workdir=tmp_path / 'runs', results=tmp_path / 'results')
  options = dataclasses.replace(options, dry_run=True)
  assert sweep.run(options) == 0
  assert '3 runs, 0 finished, 3 to do' in capsys.readouterr().out
  with pytest.raises(UserError, match='on, seed 0 starts from dense, seed 0, which is not trained'):
    sweep.run(dataclasses.replace(options, runs=['on']))
  for job in jobs_of(tmp_path / 'runs', *_RUNS[:1]):
    _trained(job)
  assert sweep.run(options) == 0
  assert '3 runs, 1 finished, 2 to do' in capsys.readouterr().out
