"""kill -9, SIGTERM, damaged checkpoints, a full disk:
the run goes on, and computes bit for bit the same.
"""

import itertools
import json
import os
import shutil
import signal
import subprocess

import pytest

from tests import in_process
from tests.launch.runs import programs
from tests.launch.runs.programs import CONFIG

_TWENTY = '--config.train.num_steps=20'


def _flags(data_flags, workdir):
  # Without pictures: drawing them, with its imports, takes a sixth of so short a run.
  return CONFIG, *data_flags, f'--workdir={workdir}', '--config.train.writers='


def _steps(workdir):
  return sorted(
    int(path.name) for path in (workdir / 'checkpoints').iterdir() if path.name.isdigit()
  )


def test_kill_9_then_the_same_command_computes_the_same_bits(data_flags, tmp_path):
  killed, undisturbed = tmp_path / 'killed', tmp_path / 'undisturbed'
  flags = lambda workdir: (*_flags(data_flags, workdir), '--config.ops.implementation=auto')
  # Before the first checkpoint, between two, and while one may be being written.
  for at_step in (4, 13, 27):
    code, output = programs.interrupt(signal.SIGKILL, killed, at_step, *flags(killed))
    assert code == -signal.SIGKILL, output
  for workdir in (killed, undisturbed):
    programs.check('train', *flags(workdir))
  assert programs.losses(killed) == programs.losses(undisturbed)


def test_sigterm_saves_exits_cleanly_and_resumes_to_the_same_bits(data_flags, finished, tmp_path):
  flags = _flags(data_flags, tmp_path)
  code, output = programs.interrupt(signal.SIGTERM, tmp_path, 15, *flags)
  assert code == 0, output
  stopped_at = programs.lines(tmp_path)[-1]['step']
  assert 15 <= stopped_at < 40 and stopped_at in _steps(tmp_path)
  assert f'stopped by SIGTERM: saved step {stopped_at}' in output
  output = programs.check('train', *flags)
  assert f'going on from step {stopped_at}' in output
  assert programs.losses(tmp_path) == programs.losses(finished)


@pytest.mark.parametrize(
  'options',
  [
    '--config.moe.router=sigmoid --config.moe.balancing=bias --config.moe.bias_update_rate=0.01 '
    '--config.moe.gate_mass=0.6 --config.moe.shared_gate=True',
    '--config.moe.balancing=quantile --config.moe.wide_experts=2 --config.moe.wide_factor=2',
  ],
  ids=['bias, mass, gate', 'quantile, widths'],
)
def test_routing_options_resume_to_the_same_bits(data_flags, tmp_path, options):
  """The state that a router has of its own goes on from the checkpoint as well."""
  whole, resumed = tmp_path / 'whole', tmp_path / 'resumed'
  flags = lambda workdir: (*_flags(data_flags, workdir), *options.split(), _TWENTY)
  in_process.check('train', *flags(whole))
  shutil.copytree(whole, resumed)
  shutil.rmtree(resumed / 'checkpoints' / '20')
  assert 'going on from step 10' in in_process.check('train', *flags(resumed))
  assert programs.losses(resumed) == programs.losses(whole)


def test_a_finished_run_says_so_and_changes_nothing(data_flags, finished, tmp_path):
  workdir = shutil.copytree(finished, tmp_path / 'copy')
  before = (workdir / 'metrics.jsonl').read_bytes()
  assert 'finished: 40 of 40 steps' in in_process.check('train', *_flags(data_flags, workdir))
  assert (workdir / 'metrics.jsonl').read_bytes() == before


def test_keeps_the_last_ones_and_the_best(finished):
  best = min(
    (line for line in programs.lines(finished) if 'held_out_loss' in line),
    key=lambda x: x['held_out_loss'],
  )
  assert _steps(finished) == sorted({30, 40, best['step']})


def _content(item):
  """The file that holds most of an item: the largest one of arrays, the only one of JSON."""
  files = [path for path in item.rglob('*') if path.is_file() and path.name != 'commit_success.txt']
  return max(files, key=lambda path: path.stat().st_size)


def _truncate(path):
  os.truncate(path, path.stat().st_size // 2)


def _flip_a_bit(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 4
  path.write_bytes(content)


DAMAGES = {'truncated': _truncate, 'flipped': _flip_a_bit, 'missing': os.remove}
ITEMS = ('params', 'training', 'data')


def _two_checkpoints(finished, workdir):
  """A copy of the finished run with checkpoints 30 and 40."""
  shutil.copytree(finished, workdir)
  for step in set(_steps(workdir)) - {30, 40}:
    shutil.rmtree(workdir / 'checkpoints' / str(step))
  return workdir


@pytest.fixture(scope='module')
def damaged(data_flags, finished, tmp_path_factory):
  """(folder of the workdirs whose checkpoint 40 is damaged, the programs' results by name).

  One other process runs all: when a read of an array fails, the reads under way go on until
  their process ends.
  """
  folder, commands = tmp_path_factory.mktemp('damaged'), {}
  for damage, item in itertools.product(DAMAGES, ITEMS):
    workdir = _two_checkpoints(finished, folder / f'{damage} {item}')
    DAMAGES[damage](_content(workdir / 'checkpoints' / '40' / item))
    commands[workdir.name] = ('train', *_flags(data_flags, workdir))
  evaluated = _two_checkpoints(finished, folder / 'evaluated')
  _truncate(_content(evaluated / 'checkpoints' / '40' / 'params'))
  commands['newest'] = ('evaluate', f'--workdir={evaluated}', '--format=json')
  results = in_process.run_elsewhere(list(commands.values()))
  return folder, dict(zip(commands, results, strict=True))


@pytest.mark.parametrize('damage', DAMAGES)
@pytest.mark.parametrize('item', ITEMS)
def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(damaged, finished, damage, item):
  folder, results = damaged
  workdir, done = folder / f'{damage} {item}', results[f'{damage} {item}']
  assert done.returncode == 0, done.stderr
  assert 'checkpoint step 40' in done.stderr and 'unreadable' in done.stderr
  assert 'going on from step 30' in done.stdout
  assert programs.losses(workdir) == programs.losses(finished)
  assert (workdir / 'unreadable' / '40').is_dir()  # set aside, not deleted


def test_when_no_checkpoint_is_readable_training_does_not_start_over(
  data_flags, finished, tmp_path
):
  workdir = _two_checkpoints(finished, tmp_path / 'damaged')
  before = (workdir / 'metrics.jsonl').read_bytes()
  for step in (30, 40):
    _truncate(_content(workdir / 'checkpoints' / str(step) / 'params'))
  done = programs.run('train', *_flags(data_flags, workdir))
  assert done.returncode == 2 and 'Traceback' not in done.stderr
  assert 'can be read (steps 30, 40)' in done.stderr.splitlines()[-1]
  assert _steps(workdir) == [30, 40] and (workdir / 'metrics.jsonl').read_bytes() == before


def test_evaluation_names_an_unreadable_checkpoint_and_takes_the_one_before(damaged):
  folder, results = damaged
  workdir, done = folder / 'evaluated', results['newest']
  assert json.loads(done.stdout)['step'] == 30 and 'step 40' in done.stderr
  # In a process of its own: elsewhere its one line would stand among those of earlier failed reads.
  assert 'step 40' in programs.error_line('evaluate', f'--workdir={workdir}', '--step=40')
  assert _steps(workdir) == [30, 40]


def test_a_full_disk_leaves_the_last_checkpoint_intact(data_flags, finished, tmp_path):
  small = tmp_path / 'small'
  small.mkdir()
  mounted = subprocess.run(
    ['mount', '-t', 'tmpfs', '-o', 'size=1500k', 'tmpfs', str(small)], capture_output=True
  )
  if mounted.returncode:
    pytest.skip('mounting a small file system needs root')
  try:
    workdir = small / 'run'
    line = programs.error_line(
      'train', *_flags(data_flags, workdir), '--config.checkpoint.keep_last=9'
    )
    assert 'could not save checkpoint' in line and 'No space left' in line and str(workdir) in line
    kept = max(_steps(workdir))
    assert f'the newest complete one is step {kept}' in line
    scores = json.loads(in_process.check('evaluate', f'--workdir={workdir}', '--format=json'))
    assert scores['step'] == kept
  finally:
    subprocess.run(['umount', str(small)], check=True)
