"""The fixture that the ops' suites share."""

import pytest

from moe.ops.tpu import row_moves, visits
from tests.moe.ops.backends import interpreted


@pytest.fixture
def implementation(request, monkeypatch):
  """The implementation's name, with its platform's kernels interpreted. TPU kernels use blocks of
  16 rows, and fail the test on a race.

  Block sizes are not part of jit's cache key: only these suites may trace their functions for
  a TPU.
  """
  name = request.param
  if not name.endswith('tpu'):
    with interpreted(name):
      yield name
    return
  # Shapes are tiny: only small blocks give several of them.
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
