"""The batch file, submitted to a real Slurm of two nodes on this machine."""

import json
import os
import random
import time
from pathlib import Path

import pytest

from moe.config import from_config_dict
from moe.train import train
from tests.launch.cluster import slurm
from tests.launch.cluster.scripts import FOLDER, PYTHON_BIN, ROOT, fake
from tests.launch.runs import config as tests_config
from tests.small import one_device

_NUM_STEPS = 40  # of the run on two nodes, and of the one process it is compared with
_BATCH_FILE = str(FOLDER / 'slurm.sbatch')


@pytest.fixture(scope='module')
def cluster(tmp_path_factory):
  cluster = slurm.Cluster(tmp_path_factory.mktemp('slurm'))
  try:
    cluster.start()
    yield cluster
  except slurm.CannotRun as error:
    pytest.skip(f'no Slurm here: {error}')
  finally:
    cluster.stop()


class _Job:
  """A submitted batch file. Its `python` is the one in `bin_folder`, which is first on PATH."""

  def __init__(
    self, cluster, log: Path, bin_folder: Path, *flags: str, environment=None, options=()
  ):
    environment = {'PATH': f'{bin_folder}:{os.environ["PATH"]}'} | (environment or {})
    options = ('--parsable', f'--nodes={len(slurm.NODES)}', f'--output={log}', *options)
    submit = ('sbatch', *options, _BATCH_FILE, *flags)
    self.number = cluster.check(*submit, cwd=ROOT, environment=environment).strip()
    self._cluster, self._log = cluster, log

  def output(self) -> str:
    return self._log.read_text() if self._log.exists() else ''

  def until(self, ready, timeout=240) -> None:
    deadline = time.monotonic() + timeout
    while not ready():
      assert time.monotonic() < deadline, (
        f'{self._cluster.job(self.number)}\n{self.output()}\n{self._cluster.logs()}'
      )
      time.sleep(0.05)

  def end(self, timeout=240) -> tuple[str, str, str]:
    """(state, exit code:signal, restarts), once it has ended for good."""
    job = self._cluster.wait(self.number, timeout)
    return job['JobState'], job['ExitCode'], job['Restarts']


def _losses(workdir):
  path = workdir / 'metrics.jsonl'
  lines = path.read_text().splitlines(keepends=True) if path.exists() else []
  return {
    line['step']: line['loss']
    for line in (json.loads(line) for line in lines if line.endswith('\n'))
  }


def _config(folder, save_every=1_000_000):
  """Config keys of a run that takes seconds, on its own text."""
  return {
    'model.num_layers': 1,
    'ops.implementation': 'reference',  # compiles fastest
    'data.sources': f'text={folder}/*.txt',
    'data.dir': f'{folder}/data',
    'train.num_steps': _NUM_STEPS,
    'train.heatmap_every': 0,
    'evaluation.every_steps': 0,
    'evaluation.max_batches': 1,
    'checkpoint.every_steps': save_every,
    'checkpoint.keep_best': 0,
  }


def _flag_file(folder, **options):
  """A file with those keys as flags, which a job reads each time it starts."""
  path = folder / 'flags'
  path.write_text(
    ''.join(f'--config.{key}={value}\n' for key, value in _config(folder, **options).items())
  )
  return path


@pytest.fixture
def folder(tmp_path):
  generator = random.Random(0)
  words = ('the', 'expert', 'router', 'token', 'gate', 'shared', 'layer', 'batch', 'loss')
  for number in range(30):
    (tmp_path / f'{number}.txt').write_text(' '.join(generator.choices(words, k=100)))
  return tmp_path


@pytest.mark.usefixtures('quick_compile')
def test_two_nodes_stop_queue_again_and_compute_what_one_process_does(cluster, folder):
  workdir = folder / 'nodes'
  # Saving at every step makes the run slow enough to be stopped on the way.
  flags = (
    '--config=tests/launch/runs/config.py',
    f'--flagfile={_flag_file(folder, save_every=1)}',
    f'--workdir={workdir}',
  )
  quick_compile = {'JAX_DISABLE_MOST_OPTIMIZATIONS': '1'}
  job = _Job(cluster, folder / 'log', PYTHON_BIN, *flags, environment=quick_compile)
  job.until(lambda: len(_losses(workdir)) >= 2)
  # What --signal=B:TERM does before the time limit.
  cluster.check('scancel', '--batch', '--signal=TERM', job.number)
  job.until(lambda: 'stopped by SIGTERM: saved step' in job.output())
  _flag_file(folder)

  alone = tests_config.get_config()  # computed while the job waits in the queue
  alone.update_from_flattened_dict(_config(folder))
  with one_device():
    train(from_config_dict(alone), folder / 'alone')

  assert job.end() == ('COMPLETED', '0:0', '1'), job.output()

  assert '2 processes' in job.output()
  assert 'exit code 0 after SIGTERM: queueing again (restart 1)' in job.output()
  assert 'going on from step' in job.output()
  losses = _losses(workdir)
  assert list(losses) == list(range(1, _NUM_STEPS + 1))
  # The same batches and arithmetic, summed in another order.
  assert list(losses.values()) == pytest.approx(list(_losses(folder / 'alone').values()), rel=1e-4)


def test_bad_input_is_told_once(cluster, tmp_path):
  flags = (
    '--config=tests/launch/runs/config.py',
    f'--workdir={tmp_path}/run',
    '--config.train.steps=3',
  )
  job = _Job(cluster, tmp_path / 'log', PYTHON_BIN, *flags)
  assert job.end() == ('FAILED', '2:0', '0'), job.output()
  assert 'error: ' in job.output() and 'queueing again' not in job.output()


def test_what_somebody_stops_by_hand_stays_stopped(cluster, tmp_path):
  save = 'trap "echo saved; exit 130" INT; echo started; while :; do sleep 0.1; done'
  job = _Job(cluster, tmp_path / 'log', fake(tmp_path / 'bin' / 'python', save))
  job.until(lambda: job.output().count('started') == 2)
  cluster.check('scancel', '--signal=INT', job.number)
  assert job.end() == ('FAILED', '130:0', '0'), job.output()
  assert job.output().count('saved') == 2 and 'queueing again' not in job.output()


def test_a_process_that_dies_ends_the_others_and_the_job_queues_again_a_few_times(
  cluster, tmp_path
):
  one_dies = 'echo started; if [ "$SLURM_PROCID" = 1 ]; then exit 134; fi; exec sleep 300'
  bin_folder = fake(tmp_path / 'bin' / 'python', one_dies)
  job = _Job(
    cluster, tmp_path / 'log', bin_folder, environment={'MAX_RESTARTS': '1', 'SLURM_WAIT': '2'}
  )
  state, code, restarts = job.end()
  assert (state, restarts) == ('FAILED', '1') and code != '0:0', job.output()
  assert job.output().count('started') == 2 * 2
  assert (
    'queueing again (restart 1)' in job.output() and 'after 1 restarts: giving up' in job.output()
  )


def test_a_cancelled_job_stays_away(cluster, tmp_path):
  save = 'trap "echo saved; exit 0" TERM; echo started; while :; do sleep 0.1; done'
  job = _Job(cluster, tmp_path / 'log', fake(tmp_path / 'bin' / 'python', save))
  job.until(lambda: job.output().count('started') == 2)
  cluster.check('scancel', job.number)
  assert job.end()[::2] == ('CANCELLED', '0')
  assert 'queueing again' not in job.output()


def test_a_task_of_an_array_runs_the_line_of_its_number(cluster, tmp_path):
  commands = tmp_path / 'commands'
  commands.write_text(
    "python -m launch.train '--config.data.sources=a=1;b=2 3'\npython -m launch.train second\n"
  )
  bin_folder = fake(
    tmp_path / 'bin' / 'python', f'printf "<%s>" "$@" >> {tmp_path}/task-$SLURM_ARRAY_TASK_ID'
  )
  _Job(cluster, tmp_path / 'log', bin_folder, str(commands), options=('--array=0-1', '--nodes=1'))
  tasks = [tmp_path / f'task-{number}' for number in (0, 1)]
  deadline = time.monotonic() + 120
  while not all(task.exists() for task in tasks):
    assert time.monotonic() < deadline, cluster.logs()
    time.sleep(0.1)
  first, second = (task.read_text() for task in tasks)
  assert first == '<-m><launch.train><--config.data.sources=a=1;b=2 3>'
  assert second == '<-m><launch.train><second>'


def test_a_stopped_task_of_an_array_queues_again_and_leaves_the_others_alone(cluster, tmp_path):
  commands = tmp_path / 'commands'
  commands.write_text('python\n' * 2)
  run = f"""
    task={tmp_path}/$SLURM_ARRAY_TASK_ID
    echo "$SLURM_JOB_ID" >> $task.started
    trap 'touch $task.saved; exit 0' TERM
    until [ -e {tmp_path}/finish ]; do sleep 0.1; done"""
  options = ('--array=0-1', '--nodes=1', f'--output={tmp_path}/%a.log')
  job = _Job(
    cluster,
    tmp_path / 'log',
    fake(tmp_path / 'bin' / 'python', run),
    str(commands),
    options=options,
  )
  started = [tmp_path / f'{number}.started' for number in (0, 1)]
  job.until(lambda: all(path.exists() and path.read_text() for path in started))
  # One task has the array's own number, so `scancel NUMBER` would signal both tasks.
  numbers = [path.read_text().strip() for path in started]
  stopped = numbers.index(job.number)

  cluster.check('scancel', '--batch', '--signal=TERM', f'{job.number}_{stopped}')
  job.until(lambda: len(started[stopped].read_text().splitlines()) == 2)  # it runs again
  (tmp_path / 'finish').touch()
  for number in (0, 1):
    task = cluster.wait(f'{job.number}_{number}', 60)
    assert (task['JobState'], task['Restarts']) == ('COMPLETED', str(int(number == stopped)))
  assert [(tmp_path / f'{number}.saved').exists() for number in (0, 1)] == [
    number == stopped for number in (0, 1)
  ]
