"""Runs by several real processes have the losses of one process, whatever stops them."""

import os
import shutil
import signal
import socket

import numpy as np
import pytest

from tests.launch.runs import programs
from tests.moe.processes.group import Group, check


def _assert_same_losses(workdir, truth, after=0):
  """Float32 sums come in another order, so losses agree to 1e-5, until training amplifies the
  last bits. `after`: the step of `truth` from which the run began.
  """
  lines, true_lines = programs.lines(workdir), programs.lines(truth)[after:]
  assert [line['step'] + after for line in lines] == list(range(after + 1, 25))
  assert [line['step'] for line in true_lines] == list(range(after + 1, 25))
  for key in ('loss', 'objective', 'tokens'):
    np.testing.assert_allclose([x[key] for x in lines], [x[key] for x in true_lines], rtol=1e-5)
  assert lines[-1]['held_out_loss'] == pytest.approx(true_lines[-1]['held_out_loss'], rel=1e-5)


def _steps(workdir):
  return sorted(
    int(path.name) for path in (workdir / 'checkpoints').iterdir() if path.name.isdigit()
  )


def _fork(source, step):
  return (
    f'--config.train.init_from={source}:{step}',
    *(f'--config.train.init_{what}=True' for what in ('optimizer', 'data')),
    *(f'--config.optimizer.start_step={step}', f'--config.train.num_steps={24 - step}'),
  )


def test_two_processes_compute_the_losses_of_one(by_one, by_two):
  _assert_same_losses(by_two, by_one)
  assert {path.name for path in by_two.iterdir()} == {path.name for path in by_one.iterdir()}
  assert len(list((by_two / 'tensorboard').iterdir())) == 1  # process 0 alone writes


def test_four_processes_go_on_with_what_is_readable_of_a_run_of_two(
  flags, by_one, by_two, tmp_path
):
  workdir = shutil.copytree(by_two, tmp_path / 'run')
  parts = (path for path in workdir.glob('checkpoints/24/params/**/*') if path.is_file())
  largest = max(parts, key=lambda path: path.stat().st_size)
  os.truncate(largest, largest.stat().st_size // 2)
  output = check(4, workdir, *flags, '--config.mesh.data=2', '--config.mesh.expert=2')
  assert output.count('checkpoint step 24') == 1 and (workdir / 'unreadable' / '24').is_dir()
  # Process 0 alone prints.
  assert 'going on from step 16' in output and output.count('step 24/24') == 1
  assert programs.losses(workdir)[:16] == programs.losses(by_two)[:16]
  _assert_same_losses(workdir, by_one)


def test_two_stages_in_two_processes_go_on_with_a_run_of_halved_batches(
  flags, by_one, by_two, tmp_path
):
  workdir = shutil.copytree(by_two, tmp_path / 'run')
  shutil.rmtree(workdir / 'checkpoints/24')
  stages = ('--config.mesh.data=1', '--config.mesh.stage=2', '--config.train.microbatches=2')
  assert 'going on from step 16' in check(2, workdir, *flags, *stages)
  _assert_same_losses(workdir, by_one)


@pytest.mark.parametrize('asked, after', [(0, 0), (1, 8)])
def test_sigterm_in_one_stops_all_at_the_same_step_and_one_process_goes_on(
  asked, after, flags, by_one, tmp_path
):
  """Covers a new run, and a fork, which starts in the middle of another run and takes its next
  steps.
  """
  flags, end = (*flags, *(_fork(by_one, after) if after else ())), 24 - after
  with Group(2, tmp_path, *flags, '--config.mesh.data=1', '--config.mesh.fsdp=2') as group:
    group.wait_for_step(4)
    with pytest.raises(ConnectionRefusedError):  # nothing listens at this machine's other addresses
      socket.create_connection(('127.0.0.2', group.port), timeout=5)
    group.send(signal.SIGTERM, asked)
    assert group.wait() == [0, 0], group.output()
    output = group.output(0)
  stopped_at = programs.lines(tmp_path)[-1]['step']
  assert 4 <= stopped_at < end and max(_steps(tmp_path)) == stopped_at
  # Only process 0 says what the run starts from.
  assert group.output().count(f'warm start from {by_one}, step {after}') == bool(after)
  cause = 'a signal to another process' if asked else 'SIGTERM'
  assert f'stopped by {cause}: saved step {stopped_at}' in output
  assert f'going on from step {stopped_at}' in programs.check(
    'train', programs.CONFIG, *flags, f'--workdir={tmp_path}', '--config.mesh.data=-1'
  )
  _assert_same_losses(tmp_path, by_one, after)


def test_kill_9_of_one_then_supervised_starts_compute_the_same_bits(flags, by_two, tmp_path):
  with Group(2, tmp_path, *flags, supervised=True) as group:
    group.wait_for_step(11)
    other = group.pid(0)
    group.send(signal.SIGKILL, 1)
    group.wait_for_end(other)
    assert group.wait() == [0, 0], group.output()
    output = group.output(0)
  assert 'restart 1 of' in output and 'going on from step' in output
  assert programs.losses(tmp_path) == programs.losses(by_two)


def test_bad_input_ends_all_with_one_line(flags, tmp_path):
  with Group(2, tmp_path / 'run', *flags, '--config.mesh.data=3') as group:
    assert group.wait() == [2, 2], group.output()
    for process in (0, 1):
      lines = group.output(process).splitlines()
      (line,) = (line for line in lines if not line.startswith('[Gloo]'))  # Gloo greets on stdout
      assert line.startswith('error: mesh.data=3')
  assert not (tmp_path / 'run').exists()


def test_what_one_process_cannot_write_ends_all_with_one_line(flags, tmp_path):
  """Only process 0 writes the file. If the others exited with the code for a restart, they would
  restart for ever.
  """
  (tmp_path / 'run/tokenizer.model').mkdir(parents=True)
  with Group(2, tmp_path / 'run', *flags) as group:
    assert group.wait() == [2, 2], group.output()
    for process in (0, 1):
      assert group.output(process).count('error: ') == 1
      assert 'tokenizer.model must be a file' in group.output(process)
