import pytest

from tests.launch.runs import conftest as of_runs
from tests.launch.runs import programs
from tests.moe.processes import group

corpus, data_flags = of_runs.corpus, of_runs.data_flags

# 24 steps; held-out text is scored at the end only.
SHORT = (
  '--config.train.num_steps=24',
  '--config.checkpoint.every_steps=8',
  '--config.checkpoint.keep_best=0',
  '--config.checkpoint.keep_last=3',
  '--config.evaluation.every_steps=0',
  # No pictures, which take longer than the steps.
  '--config.train.writers=',
)
BOARD = '--config.train.writers=tensorboard'


@pytest.fixture(scope='session')
def flags(data_flags):
  return (*data_flags, *SHORT)


@pytest.fixture(scope='session')
def by_one(flags, tmp_path_factory):
  """The workdir of a run by one process. Tests only read it."""
  workdir = tmp_path_factory.mktemp('runs') / 'by_one'
  programs.check('train', programs.CONFIG, *flags, BOARD, f'--workdir={workdir}')
  return workdir


@pytest.fixture(scope='session')
def by_two(flags, tmp_path_factory):
  """The workdir of an undisturbed run by two processes, each fed half of every batch. Tests only
  read it.
  """
  workdir = tmp_path_factory.mktemp('runs') / 'by_two'
  group.check(2, workdir, *flags, BOARD)
  return workdir
