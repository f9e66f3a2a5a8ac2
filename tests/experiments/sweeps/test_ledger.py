"""The ledger of a study: lines put, read and refused, and the commits that they name."""

import json
import re
import subprocess
import sys

import pytest

from experiments.sweeps import (
  ledger,
  line,
  machine,
  plan,
)
from moe.errors import UserError
from tests.launch.runs import programs


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
  """In old ones balance is 1; now it is 0."""
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


def test_figures_of_different_data_are_refused(tmp_path):
  study = 'experiments/studies/shared_off.py'
  (job,) = plan.jobs(plan.load(study), ledger.PROXY, [0], {}, tmp_path)
  file = ledger.path(tmp_path, 'shared_off')
  made = {'run': 'deepseek_moe', 'config_hash': job.config_hash}
  # The oldest lines name no data.
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
  # As for a package installed in an environment inside somebody else's repository.
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
