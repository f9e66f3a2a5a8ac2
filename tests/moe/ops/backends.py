"""The implementations that the ops' tests run over. Kernels run on CPU, in Pallas' interpreters.

A suite is one test over a table: `@over('shape, dtype', {implementation: its rows})`. The fixture
`implementation` (conftest.py) sets up what the implementation needs.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import jax.numpy as jnp
import pytest
from jax.experimental.pallas import tpu as pltpu

from moe.ops.implementation import compiling_for

DTYPES = (jnp.float32, jnp.bfloat16)
# The TPU interpreter simulates DMAs and semaphores, and prints the races that it sees.
# Each DMA takes milliseconds there.
TPU = pltpu.InterpretParams(detect_races=True)


def over(names: str, rows: Mapping[str, Sequence]) -> pytest.MarkDecorator:
  """Parametrises a test by `implementation` and `names`, with each implementation's own rows.

  Rows after an implementation's first are marked `more`: `make check` leaves them to `make test`.
  """
  several = ',' in names
  table = [
    pytest.param(implementation, *(row if several else (row,)), marks=[pytest.mark.more] * (n > 0))
    for implementation, own in rows.items()
    for n, row in enumerate(own)
  ]
  return pytest.mark.parametrize(f'implementation, {names}', table, indirect=['implementation'])


@contextlib.contextmanager
def interpreted(implementation: str) -> Iterator[None]:
  """Code traced inside picks implementations as on the platform that the name ends with, if any,
  and interprets the kernels.
  """
  if implementation.endswith('tpu'):
    with compiling_for('tpu', interpret=TPU):
      yield
  elif implementation.endswith('gpu'):
    with compiling_for('gpu', interpret=True):
      yield
  else:
    yield
