import fcntl
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.launch.runs import programs

_WORDS = (
  'the',
  'expert',
  'router',
  'token',
  'gate',
  'shared',
  'layer',
  'batch',
  'loss',
  'one',
  'two',
  'three',
  'four',
)


def _made_once(tmp_path_factory, name: str, make: Callable[[Path], None]) -> Path:
  """The folder that `make` fills, for all workers: the first that asks makes it, others wait."""
  folder = tmp_path_factory.getbasetemp()
  if 'PYTEST_XDIST_WORKER' in os.environ:
    folder = folder.parent  # a worker's folder is in the session's
  made = folder / f'{name}.made'
  with open(folder / f'{name}.lock', 'w') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    if not made.exists():
      make(folder / name)
      made.touch()
  return folder / name


@pytest.fixture(scope='session')
def corpus(tmp_path_factory):
  """The source spec of two domains of small documents."""
  folder = _made_once(tmp_path_factory, 'corpus', _write_corpus)
  return f'prose={folder}/prose-*.txt;code={folder}/code-*.txt'


def _write_corpus(folder):
  folder.mkdir()
  generator = random.Random(0)
  for domain in ('prose', 'code'):
    for number in range(40):
      words = [generator.choice(_WORDS) for _ in range(generator.randrange(40, 200))]
      text = ' '.join(words) if domain == 'prose' else '\n'.join(f'{a} = {a} + 1' for a in words)
      (folder / f'{domain}-{number}.txt').write_text(text + '\n')


@pytest.fixture(scope='session')
def data_flags(corpus, tmp_path_factory):
  """Flags that make every run read the same data, prepared once."""
  flags = lambda folder: (
    f'--config.data.sources={corpus}',
    '--config.data.holdout=0.15',
    f'--config.data.dir={folder}',
  )
  prepare = lambda folder: programs.check(
    'prepare_data', programs.CONFIG, *flags(folder), f'--out={folder}'
  )
  return flags(_made_once(tmp_path_factory, 'prepared', prepare))


@pytest.fixture(scope='session')
def finished(data_flags, tmp_path_factory):
  """The workdir of an undisturbed run, to be read only."""

  def train(workdir):
    output = programs.check('train', programs.CONFIG, *data_flags, f'--workdir={workdir}')
    assert 'step 40/40' in output

  made = _made_once(tmp_path_factory, 'undisturbed', train)
  # Each worker has its own copy: a program that is refused may lock the folder for a moment.
  return shutil.copytree(made, tmp_path_factory.mktemp('runs') / 'undisturbed')
