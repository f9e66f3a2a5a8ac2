"""launch.sweep as a user runs it: fails, is stopped, goes on, finishes, has nothing left to do."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import time

import pytest

from experiments.studies.common import PROXY
from experiments.sweeps import plan, sweep
from moe.analysis.probes import Losses
from moe.errors import UserError
from tests import in_process
from tests.experiments.reports import synthetic
from tests.launch.runs import programs

STUDY = '--sweep=tests/experiments/sweeps/tiny_study.py'
_QUICK = {'JAX_DISABLE_MOST_OPTIMIZATIONS': '1'}


def _flags(folder, corpus):
  return (
    STUDY,
    '--seeds=1',
    f'--workdir={folder}/runs',
    f'--results={folder}/results',
    f'--config.data.sources={corpus}',
  )


def _lines(folder):
  path = folder / 'results' / 'tiny_study' / 'runs.jsonl'
  return {line['run']: line for line in map(json.loads, path.read_text().splitlines())}


def _stop_while_training(flags, runs, number):
  """Starts a sweep and sends it a signal once a run has logged a
  step. Returns (exit code, output).
  """
  process = subprocess.Popen(
    programs.command('sweep', *flags),
    cwd=programs.ROOT,
    env=os.environ | _QUICK,
    stdout=subprocess.PIPE,
    text=True,
  )
  deadline = time.monotonic() + 200
  while process.poll() is None and time.monotonic() < deadline:
    if any(path.stat().st_size for path in runs.glob('*/seed0/metrics.jsonl')):
      process.send_signal(number)
      break
    time.sleep(0.002)
  output, _ = process.communicate(timeout=200)
  return process.returncode, output


@pytest.fixture(scope='module')
def swept(corpus, tmp_path_factory):
  """(folder, flags, output of the sweep that was stopped, the finished process that went on)."""
  folder = tmp_path_factory.mktemp('sweep')
  flags = _flags(folder, corpus)
  code, stopped = _stop_while_training(flags, folder / 'runs', signal.SIGTERM)
  assert code == 128 + signal.SIGTERM, stopped
  assert not (folder / 'results').exists()
  return folder, flags, stopped, programs.run('sweep', *flags, '--parallel=2', environment=_QUICK)


def test_a_run_that_fails_is_told_and_the_others_finish(swept):
  _, _, stopped, done = swept
  assert done.returncode == 1, done.stdout + done.stderr
  for output in (stopped, done.stdout):
    assert 'failed: too large, seed 0: exit code 2: error: ' in output and 'mesh' in output
  assert '2 of 3 runs finished' in done.stdout


def test_sigterm_lets_the_run_at_hand_save_and_the_same_command_goes_on(swept):
  folder, _, stopped, _ = swept
  assert 'stopped by SIGTERM; the same command goes on' in stopped
  (log,) = (
    path.read_text()
    for path in (folder / 'runs').glob('*/seed0/log.txt')
    if 'going on' in path.read_text()
  )
  assert 'stopped by SIGTERM: saved step' in log and 'going on from step' in log


def test_a_line_has_everything_a_figure_needs(swept):
  folder, *_ = swept
  lines = _lines(folder)
  assert lines.keys() == {'top 2', 'the same', 'top 1'}
  for name, line in lines.items():
    assert (line['study'], line['run'], line['seed'], line['scale']) == (
      'tiny_study',
      name,
      0,
      'proxy',
    )
    assert line['steps'] == 24 and line['tokens'] == 24 * 4 * 32 and line['seconds'] > 0
    assert line['differs'] == {
      'moe.num_experts': 4,
      'moe.experts_per_token': 1 if name == 'top 1' else 2,
    }
    assert line['settings']['train.num_steps'] == 24 and 'train.seed' not in line['settings']
    assert line['commit'] and line['machine'].keys() == {'cpu', 'device', 'jax'}
    assert line['active_params'] < line['total_params'] and line['train_flops'] > 6 * line['tokens']
    for which in ('final', 'best'):
      assert line[which]['step'] in (12, 24) and line[which]['domains'].keys() == {'prose', 'code'}
      assert (
        line[which]['total']['bits_per_byte'] > 0 and line[which]['domains']['code']['loss'] > 0
      )
    assert line['best']['total']['loss'] <= line['final']['total']['loss']
    assert [step for step, _ in line['loss_curve']] == list(range(1, 25))
    assert [step for step, _ in line['held_out_curve']] == [12, 24]
    assert line['max_vio']['final'] >= 0 and line['max_vio']['last_tenth'] >= 0
    assert (
      line['dead_experts'] >= 0 and 0 <= line['idle_experts'] <= 8 and len(line['expert_load']) == 2
    )
    assert line['evaluations'].keys() == ({'masked', 'shared off'} if name == 'top 2' else set())
    assert line['measures'].keys() == ({'specialisation', 'recall'} if name == 'top 2' else set())
  assert (
    lines['top 1']['config_hash']
    != lines['top 2']['config_hash']
    == lines['the same']['config_hash']
  )
  found = lines['top 2']['measures']
  assert {len(values) for values in found['specialisation'].values()} == {2}  # layers
  assert all(0 <= share <= 1 for share in found['specialisation']['class'])
  assert found['recall'].keys() == set(Losses._fields)
  for made in lines['top 2']['evaluations'].values():
    assert made['domains'].keys() == {'prose', 'code'}
    assert made['total']['loss'] != lines['top 2']['final']['total']['loss']
  assert (
    lines['top 2']['loss_curve'] == lines['the same']['loss_curve'] != lines['top 1']['loss_curve']
  )


def test_what_is_equal_is_trained_once_on_data_prepared_once(swept):
  folder, *_ = swept
  assert (
    len(list((folder / 'runs').glob('config-*'))) == 3
    and len(list((folder / 'runs').glob('data-*'))) == 1
  )
  assert {path.name for path in (folder / 'runs').glob('config-*/*')} == {'seed0'}


def test_a_finished_run_is_not_touched_again(swept):
  folder, flags, *_ = swept
  before = {
    path: path.stat().st_mtime_ns
    for path in folder.rglob('*')
    if path.is_file() and 'config-' in str(path)
  }
  results = (folder / 'results' / 'tiny_study' / 'runs.jsonl').read_bytes()
  done = in_process.run('sweep', *flags, '--collect')
  assert done.returncode == 1 and '2 of 3 runs finished (2 before)' in done.stdout, (
    done.stdout + done.stderr
  )
  assert 'not finished: too large, seed 0: not trained yet' in done.stdout
  assert {path: path.stat().st_mtime_ns for path in before} == before
  assert (folder / 'results' / 'tiny_study' / 'runs.jsonl').read_bytes() == results


def test_a_lost_line_comes_back_without_training(swept):
  folder, flags, *_ = swept
  before = _lines(folder)
  path = folder / 'results' / 'tiny_study' / 'runs.jsonl'
  path.write_text(
    ''.join(line for line in path.read_text().splitlines(keepends=True) if '"top 1"' not in line)
  )
  done = programs.run('sweep', *flags, '--collect', environment=_QUICK)
  assert 'top 1, seed 0: finished, held-out loss' in done.stdout, done.stdout + done.stderr
  assert _lines(folder) == before


def test_what_another_study_has_recorded_is_not_trained_again(swept, corpus, tmp_path):
  folder, *_ = swept
  shutil.copytree(folder / 'results' / 'tiny_study', tmp_path / 'results' / 'another_study')
  flags = (*_flags(tmp_path, corpus), '--runs=top 2,top 1,the same')
  done = in_process.run('sweep', *flags)
  assert done.returncode == 0 and '2 of 2 runs finished' in done.stdout, done.stdout + done.stderr
  assert 'top 1, seed 0: recorded by another study' in done.stdout
  assert _lines(tmp_path) == _lines(folder) and not list((tmp_path / 'runs').glob('config-*'))
  path = tmp_path / 'results' / 'tiny_study' / 'runs.jsonl'
  path.write_text(
    ''.join(line for line in path.read_text().splitlines(keepends=True) if '"the same"' in line)
  )
  output = in_process.check('sweep', *flags, '--dry_run')
  assert (
    output.count(': recorded by another study') == 2
    and '2 runs, 0 finished, 2 recorded by other' in output
  )
  assert 'launch.train' not in output and len(_lines(tmp_path)) == 1
  assert '2 of 2 runs finished' in in_process.check('sweep', *flags, '--collect')
  assert _lines(tmp_path) == _lines(folder)


def test_dry_run_prints_what_would_run_and_touches_nothing(corpus, tmp_path):
  output = in_process.check('sweep', *_flags(tmp_path, corpus), '--seeds=2', '--dry_run')
  assert not list(tmp_path.iterdir())
  assert output.count('python -m launch.train --config=tests/launch/runs/config.py') == 6
  assert '# top 2 = the same, seed 1: not started' in output and '6 to do' in output
  assert output.count('--config.train.seed=1 ') == output.count('--config.data.seed=1 ') == 3


def test_the_papers_scale_takes_text_of_the_users(tmp_path):
  flags = (
    '--sweep=experiments/studies/table1.py',
    '--scale=paper',
    '--seeds=1',
    f'--workdir={tmp_path}',
    '--dry_run',
  )
  output = in_process.check('sweep', *flags, '--config.data.sources=english=/data/en/*.jsonl.gz')
  assert output.count('--config=experiments/validation.py:') == 5 and '5 to do' in output


def test_dry_run_tells_what_is_finished(swept):
  _, flags, *_ = swept
  assert '3 runs, 2 finished, 1 to do' in in_process.check('sweep', *flags, '--dry_run')


def test_what_a_cluster_has_trained_may_be_scored_several_at_a_time(swept):
  _, flags, *_ = swept
  told = in_process.check(
    'sweep', *flags, '--launcher=slurm', '--collect', '--parallel=2', '--dry_run'
  )
  assert '3 runs, 2 finished, 1 to do' in told


_ONE = 'sweep = lambda scale: [scale.run("dense")]'


@pytest.mark.parametrize(
  ('content', 'options', 'words'),
  [
    (None, {}, ['there is no Python file', '--sweep']),
    ('', {}, ['has no sweep()']),
    ('def sweep(scale):\n  return 3', {}, ['must return a list of Run']),
    (
      'sweep = lambda scale: [scale.run("dense"), scale.run("dense")]',
      {},
      ["two runs named 'dense'"],
    ),
    ('sweep = lambda scale: [scale.run("dens")]', {}, ["no variant 'dens'"]),
    (
      'sweep = lambda scale: [scale.run("gshard", overrides={"moe.experts": 1})]',
      {},
      ["'gshard'", "'moe.experts'"],
    ),
    ('def sweep(:', {}, ['line 1']),
    ('1 / 0', {}, ['ZeroDivisionError']),
    ('import sys\nsys.exit("no")', {}, ['study.py', 'SystemExit: no']),
    ('import sys\nsweep = lambda scale: sys.exit()', {}, ['study.py', 'SystemExit']),
    ('sweep = lambda scale: [1, 2][3]', {}, ['IndexError']),
    ('sweep = lambda scale: [scale.run("dense", name=3)]', {}, ['is named 3']),
    ('sweep = lambda scale: [scale.run("dense", evaluations=["x"])]', {}, ["'dense'", "['x']"]),
    (
      'sweep = lambda scale: [scale.run("dense", measures=("x",))]',
      {},
      ["'dense'", "'x'", 'recall'],
    ),
    (_ONE, {'seeds': 0}, ['--seeds']),
    (_ONE, {'watch': True}, ['--watch', '--launcher=gke']),
    (_ONE, {'sbatch': ['--time=1']}, ['--sbatch', '--launcher=slurm']),
    (_ONE, {'manifest': 'mine.yaml'}, ['--manifest', '--launcher=gke']),
    (_ONE, {'launcher': 'slurm', 'parallel': 2}, ['--parallel', '--launcher=local']),
    (_ONE, {'parallel': 0}, ['--parallel']),
    (_ONE, {'overrides': {'train.seed': 3}}, ['--seeds']),
    (_ONE, {'scale': 'paper'}, ['--scale=paper', '--config.data.sources=']),
    (
      'sweep = lambda scale: [scale.run("dense", overrides={"train.num_steps": 1e3})]',
      {},
      ["'dense'", 'num_steps'],
    ),
  ],
)
def test_bad_input_is_told_before_anything_is_written(content, options, words, tmp_path):
  study = tmp_path / 'study.py'
  if content is not None:
    study.write_text(content)
  with pytest.raises(UserError) as told:
    sweep.run(sweep.Options(str(study), workdir=tmp_path / 'runs', **options))
  assert all(word in str(told.value) for word in words), told.value
  assert not (tmp_path / 'runs').exists()


@pytest.mark.parametrize(
  ('flag', 'words'),
  [
    ('--launcher=ray', ['--launcher', 'local|slurm']),
    ('--config.train.num_steps=x', ['must be an integer']),
    ('--config=experiments/proxy.py', ['no --config']),
  ],
)
def test_a_bad_flag_is_one_line(flag, words, tmp_path):
  line = in_process.error_line('sweep', '--sweep=shared_off', f'--workdir={tmp_path}/runs', flag)
  assert all(word in line for word in words), line
  assert not (tmp_path / 'runs').exists()


@pytest.fixture
def recorded(tmp_path, monkeypatch):
  """(options, job of seed 0) of a study with three finished runs of a commit that no clone has."""
  monkeypatch.chdir(programs.ROOT)
  monkeypatch.setattr(sweep.machine, 'commit', lambda: 'f' * 40)
  synthetic.write(tmp_path / 'results', 'shared_off', synthetic.lines('shared_off'))
  folders = {'workdir': tmp_path / 'runs', 'results': tmp_path / 'results'}
  options = sweep.Options('shared_off', scale='proxy', **folders)
  return options, plan.jobs(plan.load('shared_off'), PROXY, [0], {}, options.workdir)[0]


def test_results_of_other_code_are_told_and_retrain_would_train_them_anew(recorded, capsys):
  options, _ = recorded
  dry_run = dataclasses.replace(options, dry_run=True)
  assert sweep.run(dry_run) == 0
  assert re.search(
    r'^# 3 of 3 finished runs are of other code \(0123456789ab\) than this \(f{12}\).*--retrain',
    (told := capsys.readouterr().out),
  )
  assert '3 runs, 3 finished, 0 to do' in told
  sweep.run(dataclasses.replace(dry_run, retrain=True))
  told = capsys.readouterr().out
  assert told.count(': to be trained anew') == 3 and '3 runs, 0 finished, 3 to do' in told


def test_retrain_sets_aside_what_other_code_has_left(recorded, capsys, monkeypatch):
  options, job = recorded
  monkeypatch.setattr(sweep.local, 'prepare', lambda *unused: None)
  monkeypatch.setattr(sweep.local, 'run', lambda *unused: None)
  (job.workdir / 'checkpoints' / str(job.num_steps)).mkdir(parents=True)
  sweep.machine.note_commit(job.workdir, 'a' * 40)
  assert sweep.run(options) == 0 and job.workdir.is_dir()  # nothing to do
  retrain = dataclasses.replace(options, retrain=True)
  sweep.run(dataclasses.replace(retrain, collect=True))
  assert job.workdir.is_dir() and 'not trained yet' in capsys.readouterr().out
  sweep.run(retrain)
  aside = job.workdir.with_name(f'seed0-{"a" * 12}')
  assert (aside / 'checkpoints').is_dir() and not job.workdir.exists()
  assert str(aside) in capsys.readouterr().out
  sweep.machine.note_commit(job.workdir, 'f' * 40)  # a run that this code began goes on
  sweep.run(retrain)
  assert job.workdir.is_dir() and f'now in {aside}' not in capsys.readouterr().out


@pytest.mark.parametrize('commit', ['unknown', 'f' * 40 + '-dirty'])
def test_retrain_needs_to_know_its_own_code(commit, recorded, monkeypatch):
  options, _ = recorded
  monkeypatch.setattr(sweep.machine, 'commit', lambda: commit)
  with pytest.raises(UserError, match=f'--retrain cannot tell .* is {commit}'):
    sweep.run(dataclasses.replace(options, retrain=True))


@pytest.mark.parametrize('which', ['results', 'workdir'])
def test_what_cannot_be_written_is_told_before_training(which, recorded, tmp_path):
  (tmp_path / 'file').write_text('')
  options, _ = recorded
  with pytest.raises(UserError, match=rf'{tmp_path}/file.*: (Not a directory|File exists)'):
    sweep.run(dataclasses.replace(options, **{which: tmp_path / 'file' / 'x'}))


def test_a_hash_ignores_what_changes_no_step():
  study = plan.load('tests/experiments/sweeps/tiny_study.py')

  def hashes(overrides, seeds=(0,)):
    return {job.config_hash for job in plan.jobs(study, None, seeds, overrides, plan.Path('runs'))}

  unchanged = {
    'data.num_threads': 1,
    'train.log_every': 3,
    'evaluation.max_batches': 2,
    'data.dir': 'elsewhere',
  }
  assert hashes(unchanged, (0, 1)) == hashes({}) and hashes({'optimizer.peak_lr': 0.5}).isdisjoint(
    hashes({})
  )
