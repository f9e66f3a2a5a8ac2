"""What the search compiles, and how it ranks."""

import dataclasses

import jax
import pytest

from launch.plan.chips import CHIPS
from launch.plan.machine import Machine
from launch.plan.search import candidates, rank
from moe.accounting import account
from tests.small import small_config

CONFIG = small_config()
ONE = Machine('h100:1', CHIPS['h100'], (1,))


def test_one_device_leaves_only_rematerialisation_to_choose():
  tried = list(candidates(CONFIG, ONE, jax.devices()[:1]))
  assert [config.model.remat for config in tried] == ['none', 'dots', 'moe', 'full']
  assert all(config.mesh.data == config.mesh.fsdp == config.mesh.expert == 1 for config in tried)


@pytest.mark.parametrize(('spare', 'count'), [(-1, 0), (0, 4)])
def test_what_cannot_hold_its_own_state_is_not_compiled(spare, count):
  chip = dataclasses.replace(CHIPS['h100'], capacity=16 * account(CONFIG).total_params + spare)
  assert len(list(candidates(CONFIG, ONE._replace(chip=chip), jax.devices()[:1]))) == count


def test_ranking():
  plan = lambda fits, seconds, over: {
    'fits': fits,
    'step_seconds': seconds,
    'step_seconds_without_overlap': seconds,
    'over_bytes_per_device': over,
  }
  fast, slow, near, far = plan(True, 1, 0), plan(True, 2, 0), plan(False, 1, 5), plan(False, 1, 9)
  assert rank([far, slow, near, fast]) == [fast, slow, near, far]
