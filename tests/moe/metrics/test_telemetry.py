"""Readings of microbatches and of stacks of layers are joined by their own reducers."""

import jax.numpy as jnp
import numpy as np
import pytest

from moe.metrics import telemetry
from moe.metrics.telemetry import Reading


@pytest.mark.parametrize(
  ('reduce', 'expected'),
  [('sum', [-4.0, 3.0]), ('max', [-1.0, 2.0]), ('mean', [-1.5, 1.75])],
)
def test_two_microbatches(reduce, expected):
  """The first microbatch has a quarter of the tokens, which is its weight in a mean."""
  parts = [[-3.0, 1.0], [-1.0, 2.0]]
  whole = {'x': Reading(jnp.zeros(2), reduce)}
  whole = telemetry.nothing(whole)
  for values, share in zip(parts, (0.25, 0.75), strict=True):
    part = {'x': Reading(jnp.array(values), reduce)}
    whole = telemetry.combine(whole, telemetry.weighted(part, share))
  np.testing.assert_allclose(whole['x'].value, expected)
  assert whole['x'].reduce == reduce


def test_nothing_changes_no_integer_either():
  rounds = {'x': Reading(jnp.array([-7, 2]), 'max')}
  joined = telemetry.combine(telemetry.nothing(rounds), rounds)
  assert joined['x'].value.tolist() == [-7, 2]


def test_stacks_follow_one_another_and_a_name_may_be_in_one_alone():
  both = telemetry.by_layer(
    {'x': Reading(jnp.array([1.0]), 'mean')},
    {'x': Reading(jnp.array([2.0, 3.0]), 'mean'), 'y': Reading(jnp.array([4.0, 5.0]), 'sum')},
  )
  values = {name: value.tolist() for name, value in telemetry.values(both).items()}
  assert values == {'x_N': [1, 2, 3], 'y_N': [4, 5]}
