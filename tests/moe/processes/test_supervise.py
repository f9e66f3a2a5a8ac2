"""launch/supervise.sh around small shell commands."""

import signal
import subprocess

import pytest

from tests.launch.runs.programs import ROOT


def _supervise(command, *options, **others):
  return subprocess.Popen(
    ['sh', 'launch/supervise.sh', '-p', '0', *options, 'sh', '-c', command],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    **others,
  )


@pytest.mark.parametrize('code, starts', [(0, 1), (2, 1), (1, 3), (134, 3)])
def test_starts_again_after_a_crash_but_not_when_done_or_wrong(code, starts):
  process = _supervise(f'echo start; exit {code}', '-n', '2')
  output, errors = process.communicate(timeout=60)
  assert process.returncode == code and output.count('start') == starts
  assert errors.count('restart ') == starts - 1


def test_a_kill_9_is_a_crash(tmp_path):
  process = _supervise(
    f'echo start; [ -e {tmp_path}/once ] && exit 0; touch {tmp_path}/once; kill -9 $$'
  )
  output, _ = process.communicate(timeout=60)
  assert process.returncode == 0 and output.count('start') == 2


@pytest.mark.parametrize('code', [0, 7])
def test_sigterm_goes_on_to_the_command_and_ends_it_for_good(code):
  process = _supervise(
    f'trap "echo told; exit {code}" TERM; echo ready; while :; do sleep 0.1; done'
  )
  assert process.stdout.readline() == 'ready\n'
  process.send_signal(signal.SIGTERM)
  output, _ = process.communicate(timeout=60)
  assert process.returncode == code and output == 'told\n'


@pytest.mark.parametrize('arguments', [(), ('-n', 'many', 'true'), ('-x', 'true')])
def test_wrong_usage_is_one_line(arguments):
  done = subprocess.run(
    ['sh', 'launch/supervise.sh', *arguments], cwd=ROOT, capture_output=True, text=True
  )
  assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith('error: usage:')
