"""The parts of a sweep, without training: lock, ledger, line, job array."""

import dataclasses
import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

from experiments.studies.common import PROXY, Run
from experiments.sweeps import (
  children,
  ledger,
  line,
  local,
  machine,
  places,
  plan,
  shares,
  slurm,
)
from experiments.sweeps.view import View, duration
from moe.errors import UserError
from moe.storage import provenance
from tests.experiments.reports import synthetic
from tests.launch.cluster.scripts import fake
from tests.launch.runs import programs

# A sweep that has started a child, and is killed.
_KILLED = """
import os, sys
from pathlib import Path
from experiments.sweeps.children import Children, sole_sweep
with sole_sweep(Path(sys.argv[1])) as lock, Children(lock) as children:
  child = children.start(['-c', 'import time; time.sleep(300)'], Path(sys.argv[1]) / 'log')
  print(child.pid, flush=True)
  os.kill(os.getpid(), 9)
"""


_CONFIG = 'tests/launch/runs/config.py'


def _jobs(folder, *runs: Run):
  return plan.jobs(plan.Study('study.py', lambda scale: runs), None, [0], {}, folder)


def test_a_second_sweep_is_refused(tmp_path):
  with children.sole_sweep(tmp_path) as lock, children.Children(lock):
    second = subprocess.run(
      programs.command(
        'sweep', '--sweep=tests/experiments/sweeps/tiny_study.py', f'--workdir={tmp_path}'
      ),
      cwd=programs.ROOT,
      capture_output=True,
      text=True,
    )
  assert second.returncode == 2 and f'(process {os.getpid()})' in second.stderr, second.stderr
  with children.sole_sweep(tmp_path):
    pass


def test_what_a_killed_sweep_has_left_running_keeps_the_next_out_until_it_ends(tmp_path):
  killed = subprocess.run(
    [sys.executable, '-c', _KILLED, str(tmp_path)],
    cwd=programs.ROOT,
    capture_output=True,
    text=True,
  )
  assert killed.returncode == -signal.SIGKILL, killed.stderr
  child = int(killed.stdout)
  try:
    with pytest.raises(UserError, match=rf'process {child}\)'), children.sole_sweep(tmp_path):
      pass
  finally:
    os.kill(child, signal.SIGKILL)
  deadline = time.monotonic() + 20
  while True:
    try:
      with children.sole_sweep(tmp_path):
        return
    except UserError:
      assert time.monotonic() < deadline
      time.sleep(0.05)


def test_only_the_runs_named_are_planned(tmp_path):
  study = plan.Study('study.py', lambda scale: [Run(name, _CONFIG) for name in 'ab'])
  planned = plan.jobs(study, None, [0], {}, tmp_path)
  (job,) = plan.named(study, planned, ['b'])
  assert [run.name for run in job.runs] == ['b']
  with pytest.raises(UserError, match="study has no run 'c': it has a, b"):
    plan.named(study, planned, ['b', 'c'])


def test_a_line_put_again_replaces_itself(tmp_path):
  file = tmp_path / 'study' / 'runs.jsonl'
  first = {'run': 'a', 'seed': 0, 'config_hash': 'x', 'loss': 1}
  others = [{**first, 'seed': 1}, {**first, 'config_hash': 'y'}, {**first, 'run': 'b'}]
  for each in (first, *others, {**first, 'loss': 2}):
    ledger.put(file, each)
  assert [json.loads(text) for text in file.read_text().splitlines()] == [
    {**first, 'loss': 2},
    *others,
  ]
  assert list(file.parent.iterdir()) == [file]
  file.write_text(file.read_text() + '{"run"')
  with pytest.raises(UserError, match='line 5 is damaged'):
    ledger.read(file)


_LINE = {'run': 'a', 'seed': 0, 'config_hash': 'x'}


@pytest.mark.parametrize(
  ('content', 'words'),
  [
    (b'\xff\xfe', "can't decode"),
    (b'[1, 2]', "no object with 'run'"),
    (b'{"run": "a", "seed": 0}', "no object with 'config_hash'"),
    (b'', 'Expecting value'),
    (b'\0' * 9, 'Expecting value'),
    (b'{"run": "a", "seed": 0, "config_hash": "x"', 'Expecting'),
    (_LINE | {'seed': '0'}, 'seed must be an integer, not "0"'),
    (_LINE | {'seed': True}, 'seed must be an integer, not true'),
    (_LINE | {'run': ['a']}, r'run must be a string, not \["a"\]'),
    (_LINE | {'config_hash': None}, 'config_hash must be a string, not null'),
    (_LINE | {'evaluations': []}, r'evaluations must be an object, not \[\]'),
    (_LINE | {'evaluations': {'b': 3}}, 'evaluations.b must be an object, not 3'),
    (_LINE | {'final': 2.5}, 'final must be an object, not 2.5'),
    (_LINE | {'final': {'total': {'loss': 'x'}}}, 'final.total.loss must be .* not "x"'),
    (_LINE | {'machine': {'cpu': 3}}, 'machine.cpu must be a string, not 3'),
  ],
)
def test_a_damaged_line_is_named(content, words, tmp_path):
  file = tmp_path / 'runs.jsonl'
  text = content if isinstance(content, bytes) else json.dumps(content).encode()
  file.write_bytes(json.dumps(_LINE).encode() + b'\n' + text + b'\n')
  with pytest.raises(UserError, match=rf'runs\.jsonl, line 2 is damaged \(.*{words}'):
    ledger.read(file)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
  (tmp_path / 'runs.jsonl').mkdir()
  with pytest.raises(UserError, match=r'runs\.jsonl: Is a directory'):
    ledger.read(tmp_path / 'runs.jsonl')


def test_a_line_says_its_format_and_that_of_a_newer_version_is_refused(tmp_path):
  file = tmp_path / 'runs.jsonl'
  ledger.put(file, _LINE)
  ledger.put(file, _LINE | {'seed': 1, 'format': ledger.FORMAT})
  assert len(ledger.read(file)) == 2
  ledger.put(file, _LINE | {'seed': 2, 'format': ledger.FORMAT + 1})
  with pytest.raises(UserError, match=f'line 3 has format {ledger.FORMAT + 1}'):
    ledger.read(file)


def test_max_vio_of_old_lines_and_old_logs_is_read_as_one_less(tmp_path):
  """1 was balance then; 0 is now."""
  file = tmp_path / 'runs.jsonl'
  ledger.put(file, _LINE | {'seed': 1, 'format': ledger.FORMAT, 'max_vio': {'final': 0.5}})
  old = {key: value for key, value in _LINE.items() if key != 'format'}
  old |= {'seed': 2, 'max_vio': {'final': 1.5, 'last_tenth': None}}
  with file.open('a') as lines:
    lines.write(json.dumps(old) + '\n')
  first, second = ledger.read(file).values()
  assert first['max_vio'] == {'final': 0.5} and second['format'] == ledger.FORMAT
  assert second['max_vio'] == {'final': 0.5, 'last_tenth': None}
  ledger.put(file, first)  # which writes all lines, and changes none
  assert list(ledger.read(file).values()) == [first, second]
  old_log = {'step': 1, 'max_vio_N': [1.0, 2.0], 'balance_expert': 0.1}
  new_log = {'step': 2, 'max_vio_N': [0.0, 1.0], 'loss/expert_balance': 0.1}
  assert line._max_vio([old_log, new_log], 2) == {'final': 0.5, 'last_tenth': 0.5}
  assert line._max_vio([old_log], 1) == {'final': 0.5, 'last_tenth': 0.5}


def test_a_line_break_of_unicode_in_a_name_does_not_split_its_line(tmp_path):
  file = tmp_path / 'runs.jsonl'
  ledger.put(file, _LINE | {'note': 'one\u2028two\x85three'})
  assert [line['note'] for line in ledger.read(file).values()] == ['one\u2028two\x85three']


def test_lines_that_two_sweeps_put_at_a_time_are_all_there(tmp_path):
  file = tmp_path / 'study' / 'runs.jsonl'
  put = """
import sys
from pathlib import Path
from experiments.sweeps import ledger
for seed in range(100):
  ledger.put(Path(sys.argv[1]), {'run': sys.argv[2], 'seed': seed, 'config_hash': 'x'})
"""
  command = [sys.executable, '-c', put, str(file)]
  both = [subprocess.Popen([*command, name], cwd=programs.ROOT) for name in 'ab']
  assert [process.wait() for process in both] == [0, 0]
  assert len(ledger.read(file)) == 200


def test_a_line_without_all_evaluations_is_missing(tmp_path):
  (job,) = _jobs(
    tmp_path,
    Run('a', _CONFIG, evaluations={'masked': {'masked_share': 0.25}}),
  )
  made = {'run': 'a', 'seed': 0, 'config_hash': job.config_hash, 'evaluations': {}}
  key = ('a', 0, job.config_hash)
  assert ledger.missing(job, {key: made}) == list(job.runs)
  made['evaluations'] = {'masked': {'intervention': {'masked_share': 0.25}, 'total': {}}}
  assert ledger.missing(job, {key: made}) == []


def test_figures_of_different_data_are_refused(tmp_path):
  study = 'experiments/studies/shared_off.py'
  (job,) = plan.jobs(plan.load(study), ledger.PROXY, [0], {}, tmp_path)
  file = ledger.path(tmp_path, 'shared_off')
  made = {'run': 'deepseek_moe', 'config_hash': job.config_hash}
  # The first lines ever had none.
  for seed, data in enumerate([{'data': 'a'}, {}, {'data': None}, {'data': 'a'}]):
    ledger.put(file, made | data | {'seed': seed})
  assert len(ledger.current(study, tmp_path)) == 4
  assert ledger.current(study, tmp_path)[0]['idle_experts'] is None
  ledger.put(file, made | {'seed': 4, 'data': 'b', 'config_hash': '00000000'})  # in no figure
  assert len(ledger.current(study, tmp_path)) == 4
  ledger.put(file, made | {'seed': 4, 'data': 'b'})
  with pytest.raises(
    UserError, match=r'different data \(a: deepseek_moe \(seed 0\), 2 in all; b: .*1 in all\)'
  ):
    ledger.current(study, tmp_path)


def test_text_of_another_vocabulary_has_another_name():
  """A line's data are named with their tokenizer."""
  line = lambda data, size: {
    'run': 'x',
    'seed': 0,
    'data': data,
    'settings': {'model.vocab_size': size},
  }
  ledger.check_data('runs.jsonl', [line('a', 1024), line('b', 2048), line('b', 2048)])
  with pytest.raises(UserError, match='different data'):
    ledger.check_data('runs.jsonl', [line('a', 1024), line('b', 2048), line('c', 2048)])


def _prepare(job, tokens=5, **settings):
  """Leaves what names a job's prepared text."""
  job.data_dir.mkdir(parents=True, exist_ok=True)
  entry = {'documents': 1, 'bytes': 9, 'tokens': tokens, 'files': {}}
  metadata = {
    'settings': settings,
    'tokenizer': {'sha256': 'x'},
    'splits': {'train': {'prose': entry}},
  }
  (job.data_dir / 'metadata.json').write_text(json.dumps(metadata))
  return line._data(job)


def test_a_line_names_the_contents_of_its_data(tmp_path):
  (job,) = _jobs(tmp_path, Run('a', _CONFIG))
  assert line._data(job) is None
  assert _prepare(job) == _prepare(job, sources='elsewhere') != _prepare(job, tokens=6)


def test_what_another_study_has_recorded_is_taken_where_nothing_differs(tmp_path):
  masked = {'masked_share': 0.25}
  run = Run('a', _CONFIG, evaluations={'masked': masked})
  (job,) = _jobs(tmp_path, run)
  score = {'intervention': masked, 'total': {'loss': 3.0}}
  other = {
    'study': 'other',
    'idle_experts': 1.5,
    'run': 'b',
    'seed': 0,
    'config_hash': job.config_hash,
    'data': _prepare(job),
    'commit': 'its own',
    'config': 'of the other',
    'differs': {'moe.num_experts': 4},
    'evaluations': {'shared off': {'intervention': {'without_shared': True}}, 'top off': score},
  }
  taken = lambda of, run=run: line.taken(of, 'study', run, job, ['model.num_layers'])
  assert taken([{**other, 'seed': 1}, other]) == {
    **other,
    'study': 'study',
    'run': 'a',
    'config': _CONFIG,
    'differs': {'model.num_layers': job.config.model.num_layers},
    'evaluations': {'masked': score},
  }
  lacking = {key: value for key, value in other.items() if key != 'idle_experts'}
  assert taken([lacking, other])['idle_experts'] == 1.5 and 'idle_experts' not in taken([lacking])
  for change in (
    {'seed': 1},
    {'config_hash': '00000000'},
    {'data': 'other'},
    {'data': None},
    {'evaluations': {}},
  ):
    assert taken([{**other, **change}]) is None
  assert (
    taken([other], dataclasses.replace(run, evaluations={'masked': {'masked_share': 0.5}})) is None
  )
  _prepare(job, tokens=6)
  assert taken([other]) is None
  (job.data_dir / 'metadata.json').unlink()
  assert taken([other]) is None and taken([{**other, 'data': None}]) is None
  (job.data_dir / 'metadata.json').write_text('{"splits": {')
  with pytest.raises(UserError, match=r'metadata\.json is damaged .*prepared again'):
    taken([other])


@pytest.mark.parametrize(
  ('cpuinfo', 'name'),
  [
    (
      'model name\t: AMD EPYC\nflags\t\t: fpu avx2 bmi2\n\nmodel name\t: another',
      '3 × AMD EPYC (avx2)',
    ),
    (
      'model name: Xeon\nflags: avx2 avx512f avx512_bf16 amx_bf16',
      '3 × Xeon (avx2, avx512f, avx512_bf16, amx_bf16)',
    ),
    ('processor : 0\nFeatures : fp asimd bf16', f'3 × {platform.machine()} (asimd, bf16)'),
    ('', f'3 × {platform.machine()}'),
  ],
)
def test_a_machine_is_told_from_one_with_other_cores(cpuinfo, name, monkeypatch):
  monkeypatch.setattr(Path, 'read_text', lambda *unused, **named: cpuinfo)
  monkeypatch.setattr(os, 'sched_getaffinity', lambda process: {0, 2, 3}, raising=False)
  assert machine.describe_without_device()['cpu'] == name


def test_the_final_loss_depends_on_the_context_it_is_measured_with(tmp_path):
  hashes = [
    _jobs(tmp_path, Run('a', _CONFIG, overrides))[0].config_hash
    for overrides in (
      {},
      {'evaluation.context': 0.5},
      {'evaluation.context': 0.25},
      {'evaluation.max_batches': 3},
    )
  ]
  assert hashes[0] == hashes[1] == hashes[3] != hashes[2]


@pytest.mark.parametrize(
  ('overrides', 'message'),
  [
    (
      {'train.num_steps': 1e3},
      r"run 'a' of the study study: config\.train\.num_steps must be an integer, not 1000\.0",
    ),
    ({'train.num_steps': '20'}, r"run 'a' .*config\.train\.num_steps must be an integer, not '20'"),
    ({'optimizer.decay_at': 0.8}, r"run 'a' .*config\.optimizer\.decay_at must be a tuple"),
    ({'data.sources': {'prose': 'x'}}, r"run 'a' .*config\.data\.sources must be a string"),
  ],
)
def test_an_override_of_a_wrong_type_names_the_run_and_the_key(overrides, message, tmp_path):
  with pytest.raises(UserError, match=message):
    _jobs(tmp_path, Run('a', _CONFIG, overrides))


def test_an_override_may_be_written_as_a_user_writes_it(tmp_path):
  overrides = {'optimizer.peak_lr': 1, 'optimizer.decay_at': [0.5, 0.75]}
  (job,) = _jobs(tmp_path, Run('a', _CONFIG, overrides))
  assert {'--config.optimizer.peak_lr=1.0', '--config.optimizer.decay_at=(0.5, 0.75)'} <= set(
    job.flags
  )


@pytest.mark.parametrize(
  ('run', 'message'),
  [
    (
      Run('a', _CONFIG, evaluations={'masked': {'masked_shar': 0.25}}),
      r"run 'a' .* 'masked' has no 'masked_shar': it takes masked_share, ",
    ),
    (
      Run('a', _CONFIG, evaluations=['masked']),
      r"run 'a' .*evaluations must be .*not \['masked'\]",
    ),
    (Run('a', _CONFIG, evaluations={'masked': 0.25}), r"'masked' must be a name with .*not 0\.25"),
    (Run('a', _CONFIG, evaluations={3: {}}), 'the evaluation 3 must be a name'),
    (Run('a', _CONFIG, evaluations={'b': {3: 1}}), "'b' has no '3'"),
    (Run('a', _CONFIG, evaluations={'b': {'masked_share': {1}}}), "'b' is no plain JSON"),
    (Run('a', _CONFIG, evaluations={'b': {'masked_share': float('nan')}}), "'b' is no plain JSON"),
    (Run(3, _CONFIG), 'is named 3: a name is one line'),
    (Run('', _CONFIG), "is named '': a name is one line"),
    (Run('a\nb', _CONFIG), r"is named 'a\\nb': a name is one line"),
    (Run('a', None), "run 'a' .*config must be FILE.py"),
    (Run('a', _CONFIG, ['x']), r"run 'a' .*overrides must be .*not \['x'\]"),
    (Run('a', _CONFIG, {3: 1}), "run 'a' .*overrides must be values by dotted key"),
  ],
)
def test_what_a_run_cannot_have_is_found_before_training(run, message, tmp_path):
  with pytest.raises(UserError, match=message):
    _jobs(tmp_path, run)


def test_damaged_metrics_stop_one_run_and_no_study(tmp_path):
  (job,) = _jobs(tmp_path, Run('a', _CONFIG))
  job.workdir.mkdir(parents=True)
  for damaged in (b'\xff\n', b'{"step": 1}\n', b'{"step": "1", "loss": 2}\n', b'\0\0\n', b'\n'):
    (job.workdir / 'metrics.jsonl').write_bytes(b'{"step": 1, "loss": 2.0}\n' + damaged)
    assert not job.diverged and not job.ended
    with pytest.raises(UserError, match=r'metrics\.jsonl, line 2 is damaged'):
      job.metrics()
    with pytest.raises(UserError, match=r'metrics\.jsonl, line 2 is damaged'):
      line.best_step(job.workdir, [1])
  (job.workdir / 'metrics.jsonl').write_bytes(b'{"step": 1, "loss": 2.0}\n{"step": 2, "l')
  assert [line['step'] for line in job.metrics()] == [1]  # the second is being written


@pytest.mark.parametrize('damaged', [b'\xff', b'{"scores"', b'[]', b'{"scores": [3]}', b'{}'])
def test_damaged_scores_are_named(damaged, tmp_path):
  (tmp_path / 'scores.json').write_bytes(damaged)
  with pytest.raises(UserError, match=r'scores\.json is damaged .*scored again'):
    line.read_scores(tmp_path)


def test_files_are_found_here_or_in_the_package(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  shipped = str(places.ROOT / 'experiments/studies/table1.py')
  assert places.study('table1') == places.study('experiments/studies/table1.py') == shipped
  assert places.study('mine') == 'mine' and places.study('mine.py') == 'mine.py'
  assert places.located('absent.py') == 'absent.py'
  (job,) = plan.jobs(plan.load('shared_off'), PROXY, [0], {}, tmp_path / 'runs')
  assert f'--config={places.ROOT}/experiments/proxy.py:deepseek_moe' in job.flags
  Path('experiments').mkdir()
  Path('experiments/proxy.py').write_text('')
  with pytest.raises(UserError, match=r'experiments/proxy\.py is a file here and one of the inst'):
    places.located('experiments/proxy.py')
  monkeypatch.chdir(places.ROOT)
  assert places.study('table1') == 'experiments/studies/table1.py'


def test_a_child_runs_this_package_whatever_lies_in_the_folder_at_hand(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for name in ('experiments', 'launch'):
    Path(name).mkdir()
    Path(name, '__init__.py').write_text('raise RuntimeError("not ours")')
  with children.sole_sweep(tmp_path) as lock, children.Children(lock) as started:
    process = started.start(['-c', 'import experiments, launch'], tmp_path / 'log')
    assert process.wait() == 0, (tmp_path / 'log').read_text()


def test_the_evaluations_known_to_the_plan_are_the_interventions():
  from moe.analysis import Intervention

  assert tuple(field.name for field in dataclasses.fields(Intervention)) == plan.INTERVENTIONS


def test_a_run_that_went_on_with_other_code_names_both(tmp_path):
  for commit in ('abc', 'abc', 'def-dirty', 'abc'):
    machine.note_commit(tmp_path, commit)
  assert (
    machine.commits(tmp_path) == ['abc', 'def-dirty'] and machine.commits(tmp_path / 'absent') == []
  )


def test_the_same_code_is_known_by_what_differs_between_commits(tmp_path, monkeypatch):
  git = lambda *arguments: subprocess.run(
    ['git', '-c', 'user.name=a', '-c', 'user.email=a@b', *arguments],
    cwd=tmp_path,
    check=True,
    capture_output=True,
  )
  monkeypatch.setattr(machine, '_ROOT', tmp_path)
  git('init')
  commits = []
  for name in ('moe/a.py', 'README.md', 'experiments/studies/b.py', 'moe/c.py'):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).touch()
    git('add', '.')
    git('commit', '--message=next')
    commits.append(machine.commit())
  first, second, third, last = commits
  assert machine.is_of([first], third) and machine.is_of([second, first], third)
  assert not machine.is_of([third], last) and not machine.is_of([last, first], last)
  for unclear in ([], ['unknown'], [f'{last}-dirty'], ['0' * 40], ['--output=x']):
    assert not machine.is_of(unclear, last)
  assert not machine.is_of([f'{last}-dirty'], f'{last}-dirty')
  # As an installed package, in an environment inside of a repository of somebody else's.
  monkeypatch.setattr(machine, '_ROOT', tmp_path / 'moe')
  assert machine.commit() == 'unknown'


def test_what_no_run_depends_on_makes_no_commit_dirty(tmp_path, monkeypatch):
  git = lambda *arguments: subprocess.run(
    ['git', '-c', 'user.name=a', '-c', 'user.email=a@b', *arguments],
    cwd=tmp_path,
    check=True,
    capture_output=True,
  )
  monkeypatch.setattr(machine, '_ROOT', tmp_path.resolve())
  git('init')
  git('commit', '--allow-empty', '--message=first')
  for name in (
    'README.md',
    'launch/notes.md',
    'tests/test_a.py',
    'experiments/results/a/runs.jsonl',
  ):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).touch()
  assert re.fullmatch(r'[0-9a-f]{40}', machine.commit())
  (tmp_path / 'launch' / 'train.py').touch()
  assert re.fullmatch(r'[0-9a-f]{40}-dirty', machine.commit())


def test_figures_leave_out_lines_of_another_config(tmp_path):
  study = 'experiments/studies/shared_off.py'
  (job,) = plan.jobs(plan.load(study), ledger.PROXY, [0], {}, tmp_path)
  file = ledger.path(tmp_path, 'shared_off')
  for number, config_hash in enumerate(('00000000', job.config_hash)):
    for seed in (1, 0):
      ledger.put(
        file, {'run': 'deepseek_moe', 'seed': seed, 'config_hash': config_hash, 'number': number}
      )
  assert [(made['number'], made['seed']) for made in ledger.current(study, tmp_path)] == [
    (1, 0),
    (1, 1),
  ]


def _write_run(job, scores):
  """What training and scoring leave, of 1000 logged steps."""
  job.workdir.mkdir(parents=True)
  metrics = [
    {
      'step': step,
      'loss': 10 / step,
      'tokens_per_second': 128.0,
      'max_vio_N': [step / 10, step / 5],
    }
    for step in range(1, 41)
  ]
  (job.workdir / 'metrics.jsonl').write_text(''.join(f'{json.dumps(each)}\n' for each in metrics))
  content = {'final_step': 40, 'best_step': 30, 'machine': {'jax': '0'}, 'scores': scores}
  (job.workdir / 'scores.json').write_text(json.dumps(content))


def test_a_line_from_what_a_run_has_left(tmp_path, monkeypatch):
  run = Run('a', _CONFIG, evaluations={'masked': {'masked_share': 0.25}})
  (job,) = _jobs(tmp_path, run)
  score = lambda step, intervention, loss: {
    'step': step,
    'intervention': intervention,
    'total': {'loss': loss, 'bits_per_byte': loss / 2},
    'domains': {},
    'expert_load': [[1.0]],
  }
  _write_run(job, [score(40, {}, 2.0), score(30, {}, 1.5), score(40, {'masked_share': 0.25}, 7.0)])
  made = line.make('study', run, job, 'proxy', ['moe.num_experts'])
  assert (made['final']['total']['loss'], made['best']['total']['loss'], made['best']['step']) == (
    2.0,
    1.5,
    30,
  )
  assert made['evaluations'] == {
    'masked': {
      'intervention': {'masked_share': 0.25},
      'total': {'loss': 7.0, 'bits_per_byte': 3.5},
      'domains': {},
    }
  }
  assert made['seconds'] == 40 * 4 * 32 / 128
  assert made['max_vio'] == pytest.approx(
    {'final': 6.0, 'last_tenth': (5.55 + 5.7 + 5.85 + 6.0) / 4}
  )
  assert (made['commit'], made['data']) == ('unknown', None)
  assert made['differs'] == {'moe.num_experts': 4}
  for commit in ('abc', 'def'):
    machine.note_commit(job.workdir, commit)
  assert line.make('study', run, job, 'proxy', [])['commit'] == 'abc, def'
  assert made['init_from'] is None
  source = {'path': '/runs/a', 'step': 30, 'checksum': '0a1b2c3d'}
  provenance.note(job.workdir, {'commit': 'abc', 'init_from': source})
  assert line.make('study', run, job, 'proxy', [])['init_from'] == source
  # The report's tests make lines up: of what a real line has, and nothing else.
  monkeypatch.chdir(programs.ROOT)
  made_up = synthetic.lines('shared_off', seeds=[0])[0]
  assert tuple(made) == ledger.FIELDS
  assert made_up.keys() <= made.keys() and made_up['max_vio'].keys() == made['max_vio'].keys()
  with pytest.raises(UserError, match='was not scored'):
    line.make(
      'study', Run('a', run.config, evaluations={'b': {'without_shared': True}}), job, 'proxy', []
    )


def test_a_run_that_gave_up_has_a_line_without_losses(tmp_path):
  run = Run(
    'a',
    _CONFIG,
    {'train.max_bad_steps': 2},
    {'masked': {'masked_share': 0.25}},
  )
  (job,) = _jobs(tmp_path, run)
  job.workdir.mkdir(parents=True)
  logged = {
    'step': 7,
    'loss': None,
    'tokens_per_second': 128.0,
    'max_vio_N': [None, 1.0],
    'dead_experts_N': [0, 1],
  }
  for streak, diverged in ((2, False), (3, True)):
    (job.workdir / 'metrics.jsonl').write_text(json.dumps(logged | {'bad_streak': streak}) + '\n')
    assert (job.diverged, job.ended, job.trained) == (diverged, diverged, False)
  made = line.make('study', run, job, 'proxy', [])
  file = tmp_path / 'study' / 'runs.jsonl'
  ledger.put(file, made)
  (read,) = ledger.read(file).values()
  assert read['final'] == {'step': 7, 'total': {'loss': None, 'bits_per_byte': None}, 'domains': {}}
  assert (
    read['evaluations']['masked']['total']['loss'] is None
    and ledger.missing(job, ledger.read(file)) == []
  )
  assert read['max_vio'] == {'final': None, 'last_tenth': None}


def _at_hand(commands):
  """Stands for children.Children: starts the next of some programs, whatever it is asked for."""
  start = lambda arguments, log, share: subprocess.Popen([sys.executable, '-c', commands.pop(0)])
  return types.SimpleNamespace(stopped_by=None, start=start)


def test_every_run_at_a_time_has_a_share_of_its_own(tmp_path):
  jobs = _jobs(
    tmp_path,
    *(Run(f'{count}', _CONFIG, {'moe.num_experts': count}) for count in range(2, 7)),
  )
  parts, at_work, seen = [shares.Share(environment={'N': str(n)}) for n in range(3)], set(), []

  def start(arguments, log, share):
    number = share.environment['N']
    assert number not in at_work
    at_work.add(number)
    seen.append(number)
    return types.SimpleNamespace(poll=lambda: at_work.discard(number) or 3, returncode=3)

  children_of_test = types.SimpleNamespace(stopped_by=None, start=start)
  local.run([local.Task(job) for job in jobs], parts, children_of_test, lambda job: '', View([]))
  assert seen == ['0', '1', '2', '0', '1']


def test_cores_and_gpus_are_dealt_in_equal_parts(monkeypatch):
  monkeypatch.setattr(shares, '_cores', lambda: [0, 1, 2, 5, 6, 7])
  monkeypatch.setattr(shares, '_gpus', lambda: [])
  assert shares.deal(1) == [shares.WHOLE]
  assert [share.cores for share in shares.deal(2)] == [{0, 1, 2}, {5, 6, 7}]
  assert sorted(core for share in shares.deal(4) for core in share.cores) == [0, 1, 2, 5, 6, 7]
  assert shares.deal(7) == [shares.WHOLE] * 7
  monkeypatch.setattr(shares, '_gpus', lambda: ['0', '1', '2', '4'])
  assert [dict(share.environment) for share in shares.deal(2)] == [
    {'CUDA_VISIBLE_DEVICES': '0,1'},
    {'CUDA_VISIBLE_DEVICES': '2,4'},
  ]
  with pytest.raises(
    UserError, match='--parallel=5: a run takes at least one GPU, and there are 4 here'
  ):
    shares.deal(5)


def test_the_threads_of_a_core_go_together(monkeypatch):
  monkeypatch.setattr(os, 'sched_getaffinity', lambda process: set(range(8)), raising=False)
  sockets_and_cores = {'physical_package_id': lambda n: n % 4 // 2, 'core_id': lambda n: n % 2}
  monkeypatch.setattr(shares, '_topology', lambda number, what: sockets_and_cores[what](number))
  assert [share.cores for share in shares.deal(4)] == [{0, 4}, {1, 5}, {2, 6}, {3, 7}]
  assert [share.cores for share in shares.deal(2)] == [{0, 4, 1, 5}, {2, 6, 3, 7}]


def test_gpus_are_those_that_jax_would_take(monkeypatch):
  plugins = [types.SimpleNamespace(name='xla_cuda12')]
  monkeypatch.setattr(shares.importlib.metadata, 'entry_points', lambda group: plugins)
  # As in a container that was given the third and the eleventh.
  monkeypatch.setattr(
    Path, 'glob', lambda *unused: map(Path, ['/dev/nvidia10', '/dev/nvidia2', '/dev/nvidiactl'])
  )
  monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
  monkeypatch.delenv('JAX_PLATFORMS', raising=False)
  assert shares._gpus() == ['0', '1']
  for visible, taken in (
    ('3,GPU-5', ['3', 'GPU-5']),
    ('-1', []),
    ('NoDevFiles', []),
    ('', []),
    ('1,-1,2', ['1']),
  ):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', visible)
    assert shares._gpus() == taken
  monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '3')
  monkeypatch.setenv('JAX_PLATFORMS', 'cpu')
  assert shares._gpus() == []
  monkeypatch.delenv('JAX_PLATFORMS')
  plugins.clear()  # jax without CUDA
  assert shares._gpus() == []


@pytest.mark.skipif(
  not hasattr(os, 'sched_getaffinity') or os.cpu_count() == 1,
  reason='no process can be kept to some of the cores here',
)
def test_a_program_runs_on_the_cores_of_its_share(tmp_path):
  cores = os.sched_getaffinity(0)
  share = shares.Share(frozenset([max(cores)]), {'OF_THE_SHARE': 'yes'})
  tell = 'import os; print(os.sched_getaffinity(0), os.environ["OF_THE_SHARE"])'
  with children.sole_sweep(tmp_path) as lock, children.Children(lock) as started:
    assert started.start(['-c', tell], tmp_path / 'log', share).wait() == 0
  assert (tmp_path / 'log').read_text().splitlines()[-1] == f'{{{max(cores)}}} yes'
  assert os.sched_getaffinity(0) == cores


def test_what_goes_wrong_with_one_line_fails_that_task_alone(tmp_path):
  jobs = _jobs(
    tmp_path,
    *(Run(f'{count}', _CONFIG, {'moe.num_experts': count}) for count in (2, 3)),
  )
  for job in jobs:
    (job.workdir / 'checkpoints' / '40').mkdir(parents=True)
  tasks = [local.Task(job) for job in jobs]

  def finish(job):
    return {'3': 'held-out loss 2'}[job.runs[0].name]

  local.run(tasks, shares.deal(1), _at_hand(['', '']), finish, View(tasks))
  assert [(task.state, task.note) for task in tasks] == [
    ('failed', "KeyError: '2'"),
    ('finished', 'held-out loss 2'),
  ]


def test_a_diverged_run_is_finished_and_never_tried_again(tmp_path):
  (job,) = _jobs(tmp_path, Run('a', _CONFIG))
  logged = json.dumps({'step': 20, 'loss': None, 'bad_streak': 99})
  give_up = (
    f'open({str(job.workdir / "metrics.jsonl")!r}, "w").write({logged!r} + chr(10)); '
    'raise SystemExit(2)'
  )
  for commands in ([give_up], []):  # the second time nothing is started
    task = local.Task(job)
    local.run([task], shares.deal(1), _at_hand(commands), lambda job: 'diverged', View([task]))
    assert (task.state, task.note) == ('finished', 'diverged')


def test_a_curve_is_thinned_to_means_that_end_where_it_ends():
  points = [(step, float(step)) for step in range(1, 1001)]
  curve = line.thinned(points)
  assert len(curve) == 200 and curve[0] == (5, 3.0) and curve[-1] == (1000, 998.0)
  assert line.thinned(points[:200]) == points[:200]
  assert line.thinned([(1, 1.0), (2, None), (3, 3.0), (4, 5.0)], most=2) == [(2, None), (4, 4.0)]


def test_last_words_are_the_error(tmp_path):
  log = tmp_path / 'log.txt'
  assert children.last_words(log) == 'no output'
  log.write_text('step 3\nerror: config.a\nand more\n\n')
  assert children.last_words(log) == 'error: config.a'


def test_durations():
  assert [duration(seconds) for seconds in (0, 59.6, 61, 3725)] == [
    '0:00',
    '1:00',
    '1:01',
    '1:02:05',
  ]


@pytest.fixture
def fake_slurm(tmp_path, monkeypatch):
  """sbatch that records its arguments and prints a job id;
  squeue that lists what is in the file `queued`.
  """
  fake(
    tmp_path / 'bin' / 'sbatch', f'printf "%s\\n" "$@" > {tmp_path}/submitted; echo "42;cluster"'
  )
  bin_folder = fake(tmp_path / 'bin' / 'squeue', f'cat {tmp_path}/queued')
  (tmp_path / 'queued').touch()
  monkeypatch.setenv('PATH', f'{bin_folder}:{os.environ["PATH"]}')
  return tmp_path


def test_an_array_has_a_task_for_each_run_not_trained(fake_slurm):
  runs_folder = fake_slurm / 'runs'
  runs = [Run(f'{count}', _CONFIG, {'moe.num_experts': count}) for count in (2, 3, 4)]
  jobs = _jobs(runs_folder, *runs)
  (jobs[0].workdir / 'checkpoints' / '40').mkdir(parents=True)
  assert [job.trained for job in jobs] == [True, False, False]
  assert slurm.submit('study', jobs[1:], runs_folder, ['--time=1:00:00']) == '42'
  *options, batch_file, commands = (fake_slurm / 'submitted').read_text().splitlines()
  assert {'--array=0-1', '--time=1:00:00', '--job-name=study'} <= set(options) and Path(
    batch_file
  ).name == 'slurm.sbatch'
  first, second = Path(commands).read_text().splitlines()
  assert first.startswith('python -m launch.train --config=tests/launch/runs/config.py --config.')
  assert f'--workdir={jobs[1].workdir}' in first and f'--workdir={jobs[2].workdir}' in second
  slurm.refuse_while_queued(runs_folder)
  (fake_slurm / 'queued').write_text('42_1 …\n')
  with pytest.raises(UserError, match=r'job array 42 .*scancel 42'):
    slurm.refuse_while_queued(runs_folder)


_ODD = [
  'a b',
  "it's",
  'one\ntwo',
  '\n',
  'x\r\t\x85\u2028\\n\'"$(false)`false`!',
  '\x1b[31m0a',
  'é 中 \\',
  '',
  'a;b|c&d',
]


@pytest.mark.parametrize('argument', _ODD)
def test_a_task_gets_its_arguments_as_they_are_from_one_line(argument, tmp_path):
  """As launch/cluster/slurm.sbatch takes them: eval of the line of a task's number."""
  line = f'printf %s\\\\0 {slurm.quoted([argument, "last"])}'
  (tmp_path / 'commands').write_text(f'false\n{line}\nfalse\n')
  script = f'eval "command=($(sed -n "2p" {tmp_path}/commands))"; "${{command[@]}}"'
  done = subprocess.run(['bash', '-c', script], capture_output=True, check=True)
  assert done.stdout.split(b'\0') == [argument.encode(), b'last', b'']


def test_only_a_job_unknown_to_slurm_has_ended(fake_slurm):
  runs_folder = fake_slurm / 'runs'
  runs_folder.mkdir()
  (runs_folder / 'slurm-study.job').write_text('42\n')
  squeue = fake_slurm / 'bin' / 'squeue'
  fake(squeue, 'echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1')
  slurm.refuse_while_queued(runs_folder)
  fake(squeue, 'echo "slurm_load_jobs error: Unable to contact slurm controller" >&2; exit 1')
  with pytest.raises(
    UserError, match=r'Unable to contact .*: is job array 42 .*delete .*slurm-study\.job'
  ):
    slurm.refuse_while_queued(runs_folder)


def test_without_squeue_nobody_knows(tmp_path, monkeypatch):
  monkeypatch.setenv('PATH', str(tmp_path))
  slurm.refuse_while_queued(tmp_path)  # nothing was submitted from here
  (tmp_path / 'slurm-study.job').write_text('42\n')
  with pytest.raises(UserError, match='no squeue here'):
    slurm.refuse_while_queued(tmp_path)


def test_the_program_submits_an_array(fake_slurm, corpus):
  flags = (
    '--sweep=tests/experiments/sweeps/tiny_study.py',
    '--seeds=2',
    f'--workdir={fake_slurm}/runs',
    f'--results={fake_slurm}',
  )
  data = (f'--config.data.sources={corpus}', f'--config.data.dir={fake_slurm}/data')
  output = programs.check('sweep', *flags, *data, '--launcher=slurm', '--sbatch=--time=1:00:00')
  assert 'job array 42 trains 6 runs' in output and (fake_slurm / 'data' / 'metadata.json').exists()
  submitted = (fake_slurm / 'submitted').read_text().splitlines()
  assert '--array=0-5' in submitted and '--time=1:00:00' in submitted
  assert Path(submitted[-1]).read_text().count('\n') == 6
