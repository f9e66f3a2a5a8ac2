"""tpu_vm.sh against a gcloud that writes down its arguments and runs the command in
the homes of two workers.
"""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.launch.cluster.scripts import FOLDER, fake

_WORKERS = ('worker-0', 'worker-1')
_FLAGS = (
  '--config=experiments/proxy.py:deepseek_moe',
  "--workdir=/mnt/it's here",
  '--config.data.sources=a=$HOME/*;b=c',
)
# Writes down its arguments, and notes the SIGTERM that the real script hands on.
_SUPERVISE = (
  'printf "%s\\n" "$@" >arguments; trap "echo stopped >>stopped; exit" TERM; '
  'while :; do sleep 0.05; done'
)
_GCLOUD = """
printf '%s\\n' "$@" >{folder}/gcloud
for argument; do command=${{argument#--command=}}; done
for worker in {workers}; do
  (export HOME={folder}/$worker; cd; bash -c "$command")
done
"""


class _Pod:
  def __init__(self, folder: Path):
    self.folder = folder
    self.repositories = [folder / worker / 'deepseek-moe' for worker in _WORKERS]
    for repository in self.repositories:
      fake(repository / 'launch' / 'supervise.sh', _SUPERVISE)
    self._bin = fake(
      folder / 'bin' / 'gcloud', _GCLOUD.format(folder=folder, workers=' '.join(_WORKERS))
    )

  def __call__(self, *arguments: str) -> subprocess.CompletedProcess:
    environment = os.environ | {'PATH': f'{self._bin}:{os.environ["PATH"]}'}
    return subprocess.run(
      [FOLDER / 'tpu_vm.sh', *arguments],
      env=environment,
      capture_output=True,
      text=True,
      timeout=30,
    )

  def check(self, *arguments: str) -> str:
    done = self(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout

  def files(self, name: str) -> list[str]:
    """The content of a file on every worker; waits until it is there."""
    paths = [repository / name for repository in self.repositories]
    deadline = time.monotonic() + 20
    while not all(path.exists() and path.read_text() for path in paths):
      assert time.monotonic() < deadline, f'no {name}'
      time.sleep(0.05)
    return [path.read_text() for path in paths]

  def end(self) -> None:
    for repository in self.repositories:
      if (repository / '.train.pid').exists() and not (repository / 'stopped').exists():
        os.kill(int((repository / '.train.pid').read_text()), signal.SIGKILL)


@pytest.fixture
def pod(tmp_path):
  pod = _Pod(tmp_path)
  yield pod
  pod.end()


def test_starts_once_on_every_worker_and_stops(pod):
  assert pod.check('my-tpu', 'start', *_FLAGS) == 'started\n' * 2
  command = ['compute', 'tpus', 'tpu-vm', 'ssh', 'my-tpu', '--worker=all']
  assert (pod.folder / 'gcloud').read_text().splitlines()[:6] == command
  wanted = '\n'.join(('.venv/bin/python', '-m', 'launch.train', *_FLAGS)) + '\n'
  assert pod.files('arguments') == [wanted] * 2  # spaces, quotes and dollars, through two shells
  assert pod.check('my-tpu', 'start', *_FLAGS) == 'already running\n' * 2
  assert pod.check('my-tpu', 'stop') == 'stopping\n' * 2
  assert pod.files('stopped') == ['stopped\n'] * 2


def test_stop_leaves_alone_a_program_that_got_the_number_of_one_that_is_gone(pod):
  with subprocess.Popen(['sleep', '30']) as other:
    for repository in pod.repositories:
      (repository / '.train.pid').write_text(f'{other.pid}\n')
      (repository / 'stopped').write_text('')
    assert pod.check('my-tpu', 'stop') == 'not running\n' * 2
    assert other.poll() is None
    other.kill()


def test_shows_the_end_of_every_log(pod):
  for number, repository in enumerate(pod.repositories):
    (repository / 'train.log').write_text(f'step {number}\n')
  assert pod.check('my-tpu', 'log') == 'step 0\nstep 1\n'


@pytest.mark.parametrize('arguments', [(), ('my-tpu',), ('my-tpu', 'start'), ('my-tpu', 'destroy')])
def test_tells_how_to_use_it(pod, arguments):
  done = pod(*arguments)
  assert done.returncode == 2 and 'tpu_vm.sh TPU_NAME start' in done.stderr
  assert not (pod.folder / 'gcloud').exists()
