import random

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


@pytest.fixture(scope='session')
def corpus(tmp_path_factory):
  """Two domains of small documents: a source spec."""
  folder = tmp_path_factory.mktemp('text')
  generator = random.Random(0)
  for domain in ('prose', 'code'):
    for number in range(40):
      words = [generator.choice(_WORDS) for _ in range(generator.randrange(40, 200))]
      text = ' '.join(words) if domain == 'prose' else '\n'.join(f'{a} = {a} + 1' for a in words)
      (folder / f'{domain}-{number}.txt').write_text(text + '\n')
  return f'prose={folder}/prose-*.txt;code={folder}/code-*.txt'


@pytest.fixture(scope='session')
def data_flags(corpus, tmp_path_factory):
  """Flags that make every run read the same data, prepared once."""
  folder = tmp_path_factory.mktemp('prepared') / 'data'
  flags = (
    f'--config.data.sources={corpus}',
    '--config.data.holdout=0.15',
    f'--config.data.dir={folder}',
  )
  programs.check('prepare_data', programs.CONFIG, *flags, f'--out={folder}')
  return flags


@pytest.fixture(scope='session')
def finished(data_flags, tmp_path_factory):
  """The workdir of an undisturbed run, to be read only."""
  workdir = tmp_path_factory.mktemp('runs') / 'undisturbed'
  output = programs.check('train', programs.CONFIG, *data_flags, f'--workdir={workdir}')
  assert 'step 40/40' in output
  return workdir
