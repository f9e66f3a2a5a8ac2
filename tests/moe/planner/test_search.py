"""What the search compiles, and how it ranks the plans."""

import dataclasses

import jax
import pytest

from moe.accounting import account
from moe.chips import CHIPS
from moe.errors import UserError
from moe.planner.machine import Machine
from moe.planner.search import candidates, plans, rank
from tests.small import small_config

CONFIG = small_config()
ONE = Machine('h100:1', CHIPS['h100'], (1,))
DENSE = {'moe.num_experts': 0, 'moe.experts_per_token': 0, 'data.batch_size': 8, 'mesh.data': 1}


def meshes(capacity=2**30, **overrides):
  """Returns the (stage, data, fsdp, expert, tensor) that the search tries on eight devices,
  in its order, each once.
  """
  chip = dataclasses.replace(CHIPS['h100'], capacity=capacity)
  tried = candidates(
    small_config(**DENSE | overrides), Machine('h100:8', chip, (8,)), jax.devices()[:1] * 8
  )
  return list(
    dict.fromkeys((m.stage, m.data, m.fsdp, m.expert, m.tensor) for m in (c.mesh for c in tried))
  )


def test_one_device_leaves_only_rematerialisation_to_choose():
  tried = list(candidates(CONFIG, ONE, jax.devices()[:1]))
  assert [config.model.remat for config in tried] == ['none', 'dots', 'moe', 'full']
  assert all(config.mesh.data == config.mesh.fsdp == config.mesh.expert == 1 for config in tried)


def test_what_cannot_hold_its_own_state_is_not_compiled():
  def tried(spare):
    chip = dataclasses.replace(CHIPS['h100'], capacity=16 * account(CONFIG).total_params + spare)
    return list(candidates(CONFIG, ONE._replace(chip=chip), jax.devices()[:1]))

  assert len(tried(4)) == 4  # the optimizer's count of steps
  with pytest.raises(
    UserError, match=r'none of 1 meshes .*: parameters, optimizer state and gradients alone exceed'
  ):
    tried(3)


def test_where_no_mesh_goes_with_the_config_the_search_says_why():
  with pytest.raises(
    UserError, match=r'none of .* meshes of h100:8 .* does not divide data\.batch_size'
  ):
    meshes(**{'data.batch_size': 3})


def test_every_split_over_data_fsdp_and_tensor_is_tried():
  assert meshes() == [
    *((1, data, 8 // data, 1, 1) for data in (1, 2, 4, 8)),
    *((1, data, 4 // data, 1, 2) for data in (1, 2, 4)),  # two heads
  ]


def test_experts_are_split_too():
  experts = {'moe.num_experts': 6, 'moe.experts_per_token': 2}
  assert {expert for _, _, _, expert, _ in meshes(**experts)} == {1, 2, 4}  # 8 > 6 + 1


@pytest.mark.parametrize('stage', [{'mesh.stage': 2}, {'mesh.stage': -1, 'mesh.fsdp': 4}])
def test_stages_are_kept_and_tried_before_one(stage):
  two = [mesh for mesh in meshes(**stage) if mesh[0] == 2]
  assert two == [
    (2, 1, 4, 1, 1),
    (2, 2, 2, 1, 1),
    (2, 4, 1, 1, 1),
    (2, 1, 2, 1, 2),
    (2, 2, 1, 1, 2),
  ]
  assert meshes(**stage) == two + meshes()


def test_stages_that_do_not_divide_the_devices_are_one_line():
  with pytest.raises(UserError, match=r'mesh\.stage=3, which does not divide 8 devices'):
    meshes(**{'mesh.stage': 3})


def test_zero_1_keeps_parameters_and_gradients_whole():
  """Bytes per parameter: ZeRO-3 takes 16 / (fsdp · tensor);
  ZeRO-1 takes 8 / tensor + 8 / (fsdp · tensor).
  """
  room = 4 * account(small_config(**DENSE)).total_params
  assert meshes(room) == [(1, 1, 8, 1, 1), (1, 1, 4, 1, 2)]
  with pytest.raises(UserError, match='exceed its memory'):
    meshes(room, **{'mesh.zero': 1})
  assert meshes(2 * room, **{'mesh.zero': 1}) == [(1, 1, 4, 1, 2), (1, 2, 2, 1, 2)]


def test_one_that_cannot_be_planned_does_not_end_the_search():
  def plan(config):
    if config == 2:
      raise jax.errors.JaxRuntimeError('INTERNAL:\n  a bug')
    return {'of': config}

  assert list(plans([1, 2, 3], plan)) == [(1, {'of': 1}), (2, 'INTERNAL: a bug'), (3, {'of': 3})]


def test_ranking():
  plan = lambda fits, seconds, over: {
    'fits': fits,
    'step_seconds': 9 - seconds,  # with everything overlapped: not what is ranked
    'step_seconds_without_overlap': seconds,
    'over_bytes_per_device': over,
  }
  fast, slow, near, far = plan(True, 1, 0), plan(True, 2, 0), plan(False, 1, 5), plan(False, 1, 9)
  assert rank([far, slow, near, fast]) == [fast, slow, near, far]
