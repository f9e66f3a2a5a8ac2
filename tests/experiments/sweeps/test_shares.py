"""Cores and GPUs dealt to runs, and runs on their shares."""

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from experiments.studies.common import Run
from experiments.sweeps import (
  children,
  line,
  local,
  shares,
)
from experiments.sweeps.view import View, duration
from moe.errors import UserError
from tests.experiments.sweeps.jobs import CONFIG, jobs_of


def _at_hand(commands):
  """Stands in for children.Children: starts the next of `commands`, whatever it is asked for."""
  start = lambda arguments, log, share: subprocess.Popen([sys.executable, '-c', commands.pop(0)])
  return types.SimpleNamespace(stopped_by=None, start=start)


def test_every_run_at_a_time_has_a_share_of_its_own(tmp_path):
  jobs = jobs_of(
    tmp_path,
    *(Run(f'{count}', CONFIG, {'moe.num_experts': count}) for count in range(2, 7)),
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
  monkeypatch.setattr(shares, '_gpus', lambda: ['3', 'GPU-5'])
  memory = 'XLA_PYTHON_CLIENT_MEM_FRACTION'
  assert [dict(share.environment) for share in shares.deal(5)] == [
    *[{'CUDA_VISIBLE_DEVICES': '3', memory: '0.300'}] * 3,
    *[{'CUDA_VISIBLE_DEVICES': 'GPU-5', memory: '0.450'}] * 2,
  ]


def test_a_run_takes_a_chip_of_a_tpu(monkeypatch, tmp_path):
  monkeypatch.setattr(shares, '_cores', lambda: [0, 1])
  monkeypatch.setattr(shares.importlib.util, 'find_spec', lambda name: name == 'libtpu')
  monkeypatch.delenv('JAX_PLATFORMS', raising=False)
  files = {'/dev': ['accel_x', 'tty0'], '/dev/vfio': ['0', '1', '2', '3', 'vfio']}
  found = lambda path, pattern: (path / name for name in files[str(path)] if 'tty' not in name)
  monkeypatch.setattr(Path, 'glob', found)
  environments = [share.environment for share in shares.deal(4)]
  assert [each['TPU_VISIBLE_CHIPS'] for each in environments] == ['0', '1', '2', '3']
  assert {each['TPU_PROCESS_BOUNDS'] for each in environments} == {'1,1,1'}
  assert len({each['TPU_MESH_CONTROLLER_PORT'] for each in environments}) == 4
  assert shares.deal(1) == [shares.WHOLE]  # all chips
  with pytest.raises(UserError, match='a TPU chip takes one run, and there are 4 here'):
    shares.deal(5)
  monkeypatch.setenv('JAX_PLATFORMS', 'cpu')
  assert [dict(share.environment) for share in shares.deal(2)] == [{}, {}]


def test_the_threads_of_a_core_go_together(monkeypatch):
  monkeypatch.setattr(os, 'sched_getaffinity', lambda process: set(range(8)), raising=False)
  sockets_and_cores = {'physical_package_id': lambda n: n % 4 // 2, 'core_id': lambda n: n % 2}
  monkeypatch.setattr(shares, '_topology', lambda number, what: sockets_and_cores[what](number))
  assert [share.cores for share in shares.deal(4)] == [{0, 4}, {1, 5}, {2, 6}, {3, 7}]
  assert [share.cores for share in shares.deal(2)] == [{0, 4, 1, 5}, {2, 6, 3, 7}]


def test_gpus_are_those_that_jax_would_take(monkeypatch):
  plugins = [types.SimpleNamespace(name='xla_cuda12')]
  monkeypatch.setattr(shares.importlib.metadata, 'entry_points', lambda group: plugins)
  # As in a container that was given the third and the eleventh GPU.
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
  jobs = jobs_of(
    tmp_path,
    *(Run(f'{count}', CONFIG, {'moe.num_experts': count}) for count in (2, 3)),
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
  (job,) = jobs_of(tmp_path, Run('a', CONFIG))
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
