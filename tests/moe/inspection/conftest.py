import pytest

from moe.data.prepare import prepare
from tests.moe.inspection.opened import corpus_config


@pytest.fixture(scope='package')
def data(tmp_path_factory):
  """Prepared text of two domains, part of it held out, with its tokenizer."""
  folder = tmp_path_factory.mktemp('text')
  return prepare(corpus_config(folder), folder / 'prepared')
