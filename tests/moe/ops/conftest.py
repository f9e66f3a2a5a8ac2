"""What the ops' suites share."""

import pytest

from moe.ops.tpu import row_moves, visits
from tests.moe.ops.backends import interpreted


@pytest.fixture
def implementation(request, monkeypatch):
  """The parameter's name, with its platform's kernels interpreted;
  on TPU in blocks of 16 rows, and without a race.

  Block sizes are no part of jit's cache key: nothing but these suites may trace
  their functions for a TPU.
  """
  name = request.param
  if not name.endswith('tpu'):
    with interpreted(name):
      yield name
    return
  # Shapes are tiny, so several blocks arise in small ones only.
  for module, constant in (
    (visits, 'LEAST_ROWS'),
    (visits, 'MOST_ROWS'),
    (row_moves, 'LEAST_ROWS'),
  ):
    monkeypatch.setattr(module, constant, 16)
  capfd = request.getfixturevalue('capfd')
  with interpreted(name):
    yield name
  assert 'RACE' not in capfd.readouterr().out
