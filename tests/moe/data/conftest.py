import pytest

from moe.data.prepare import prepare
from tests.moe.data.helpers import small_config, write_corpus


@pytest.fixture(scope='session')
def corpus_spec(tmp_path_factory):
  """Two domains: `a`, weight 3, has short documents; `b`, weight 1, has few, and one of them is
  far longer than a record.
  """
  folder = tmp_path_factory.mktemp('corpus')
  write_corpus(folder, 'a', 60)
  write_corpus(folder, 'b', 12)
  write_corpus(folder, 'b', 13, seed=1, words=(3, 120))
  (folder / 'b-long.txt').write_text('long ' * 9000)
  return f'a@3={folder}/a-*.txt;b={folder}/b-*.txt'


@pytest.fixture(scope='session')
def prepared(corpus_spec, tmp_path_factory):
  return prepare(small_config(sources=corpus_spec), tmp_path_factory.mktemp('prepared') / 'data')


@pytest.fixture
def config(corpus_spec):
  return small_config(sources=corpus_spec)
