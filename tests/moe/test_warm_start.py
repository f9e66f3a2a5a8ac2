"""Which of another run's parameters fit a config."""

import pytest

from moe.errors import UserError
from moe.warm_start import fitting
from tests.small import small_config


def test_as_many_units_of_other_experts_do_not_fit():
  """Every shape is the same, but the units would belong to other experts."""
  here, there = (
    small_config(**{'moe.wide_experts': wide, 'moe.wide_factor': factor})
    for wide, factor in ((4, 2), (2, 3))
  )
  stored = fitting.parameters(there)
  assert {name: x.shape for name, x in fitting.parameters(here).items()} == {
    name: x.shape for name, x in stored.items()
  }
  with pytest.raises(UserError, match='=3 there, 4 and 2 here; set'):
    fitting._check_shapes(here, there, stored, set(), 'a run')
  experts = {name for name in stored if 'experts' in name[:-1]}
  fitting._check_shapes(here, there, stored, experts, 'a run')
  fitting._check_shapes(there, there, stored, set(), 'a run')
