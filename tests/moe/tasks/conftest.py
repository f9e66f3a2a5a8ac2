import pytest

from tests.moe.tasks import asked


@pytest.fixture(scope='package')
def tokens():
  return asked.tokenizer()


@pytest.fixture(scope='package')
def run(tokens):
  return asked.asked_run(tokens)
