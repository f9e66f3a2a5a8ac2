"""Checks by hand the FLOPs and collectives of a tiny training step
compiled for eight CPU devices.
"""

import math

import jax
import pytest

from moe.chips import Chip
from moe.planner import planner
from moe.planner.compile_step import compile_for_devices
from moe.planner.machine import Machine
from tests.small import compiled_anew, small_config

V, D, F, LAYERS, B, L, X = 32, 16, 32, 3, 16, 16, 16  # X: heads · head width
PARAMETERS = 2 * V * D + LAYERS * (4 * D * X + 3 * D * F + 2 * D) + D
CPUS = Machine('cpu:8', Chip('cpu', 'cpu', 2**30, 1e12, 1e11, 1e10, 0), (8,))
DENSE = {
  'moe.num_experts': 0,
  'moe.experts_per_token': 0,
  'moe.num_shared_experts': 0,
  'moe.expert_balance_weight': 0.0,
  'model.num_dense_layers': 3,
  'model.num_layers': 3,
  'model.d_ff': 32,
  'data.batch_size': 16,
  'data.seq_len': 16,
  'train.loss_chunk': 16,
  'ops.implementation': 'reference',
}
CASES = {
  'data': {},
  'fsdp': {'mesh.data': 1, 'mesh.fsdp': 8, 'train.microbatches': 2, 'model.remat': 'full'},
  'tensor': {'mesh.data': 4, 'mesh.tensor': 2},
  'expert': {
    'mesh.data': 2,
    'mesh.expert': 4,
    'model.num_dense_layers': 0,
    'moe.num_experts': 8,
    'moe.experts_per_token': 2,
    'moe.d_expert': 8,
  },
  'stage': {'mesh.data': 4, 'mesh.stage': 2, 'train.microbatches': 4},  # 2 layers and 1 layer
}


@pytest.fixture(scope='module')
def plans():
  """Maps each case to its plan."""
  configs = {name: small_config(**DENSE | overrides) for name, overrides in CASES.items()}
  with compiled_anew():
    return {
      name: planner.describe(config, CPUS, compile_for_devices(config, jax.devices(), 'cpu'))
      for name, config in configs.items()
    }


def test_flops_are_those_of_the_products(plans):
  tokens = B * L
  forward = 2 * tokens * (V * D + LAYERS * (4 * D * X + 3 * D * F)) + 4 * LAYERS * tokens * L * X
  for case, record in plans.items():
    if case == 'expert':
      continue
    flops = record['flops_per_step']
    assert flops['model'] == flops['accounting'] == 3 * forward
    assert flops['padding'] == flops['skipped'] == 0
  # A block's forward runs again, except its last product, the FFN's down: nothing needs its result.
  block = 2 * tokens * (4 * D * X + 2 * D * F) + 4 * tokens * L * X
  assert plans['fsdp']['flops_per_step']['recomputed'] == LAYERS * block
  assert plans['data']['flops_per_step']['recomputed'] == 0


def test_data_parallel_devices_add_up_their_gradients_once(plans):
  sent = plans['data']['collective_bytes_per_device']
  assert set(sent) == {'all-reduce'}
  assert set(sent['all-reduce']) == {'data'}
  gradients = 2 * 4 * PARAMETERS * 7 / 8
  # A few counts and losses are summed beside the gradients.
  assert gradients <= sent['all-reduce']['data'] <= gradients + 100


def test_state_is_split_where_the_mesh_splits_it(plans):
  assert plans['data']['memory']['parameters'] == 4 * PARAMETERS
  norms = (2 * LAYERS + 1) * D
  assert plans['fsdp']['memory']['parameters'] == 4 * ((PARAMETERS - norms) // 8 + norms)
  assert plans['fsdp']['memory']['optimizer_state'] == 2 * plans['fsdp']['memory']['parameters'] + 4
  assert plans['fsdp']['mesh'] == {'fsdp': 8}


def test_zero_3_scatters_the_gradients_of_matrices_and_gathers_weights_at_most_twice(plans):
  sent = plans['fsdp']['collective_bytes_per_device']
  matrices = D * V + LAYERS * (4 * D * X + 3 * D * F)  # the embedding's rows travel instead
  once = 4 * matrices * 7 / 8 * 2  # microbatches
  assert sent['reduce-scatter'] == {'fsdp': once}
  assert once < sent['all-gather']['fsdp'] <= 2 * once
  assert sent['all-reduce']['fsdp'] < once / 20  # norms, counts and losses


def test_a_split_over_widths_sends_activations(plans):
  sent = plans['tensor']['collective_bytes_per_device']['all-reduce']
  assert {'data', 'tensor'} <= set(sent)


def test_experts_on_four_devices_exchange_tokens_and_no_loop_is_guessed(plans):
  """A share of 1 − C(6, 2) / C(8, 2) of a device's 32 tokens chooses one of the 2 of 8
  experts that another device has.

  One and a half times that many rows, 23, travel to each of the three others and back, and so do
  their gradients. The exchange's further rounds count as none.
  """
  sent = plans['expert']['collective_bytes_per_device']['all-to-all']
  rows = LAYERS * 4 * 3 * 23 * D * 4
  # Expert indices and gates travel beside the rows.
  assert set(sent) == {'expert'} and rows < sent['expert'] < 1.2 * rows
  assert [record['loops_counted_once'] for record in plans.values()] == [[]] * len(plans)


def test_of_a_pipeline_counts_what_a_stage_does_on_the_mean(plans):
  """4 microbatches take 10 ticks. Each of 2 stages does 4 backwards; together they have 3 layers,
  and each has one end of the model.
  """
  record = plans['stage']
  forward_of_a_layer = 2 * B * L * (4 * D * X + 3 * D * F) + 4 * B * L * L * X
  assert record['flops_per_step']['recomputed'] == pytest.approx(
    forward_of_a_layer * 3 / 2, rel=0.02
  )
  parameters = LAYERS * (4 * D * X + 3 * D * F + 2 * D) / 2 + V * D
  gradients = 4 * 2 * 4 * parameters * 3 / 4  # float32, all-reduced over 4 after each backward
  assert record['collective_bytes_per_device']['all-reduce']['data'] == pytest.approx(
    gradients, rel=0.02
  )


def test_a_stage_sends_only_to_its_partner(plans):
  """A stage of the two sends one sequence's activations in 5 of the 10 ticks: when the first
  stage goes forward and the last backward.
  """
  assert plans['stage']['collective_bytes_per_device']['collective-permute'] == {
    'stage': 5 * 4 * L * D
  }


def test_stages_wait_for_one_another(plans):
  """The unit is one layer's forward. The first stage, of two layers, takes 2 forward and 6
  backward. The last takes 3 + 3 · 1/6 backward; 1/6 is its head: V / 192.

  The first does two forwards, and waits until the last has done a backward, at 2 + 3.5. It has
  4 backwards and 2 forwards left: 5.5 + 28 = 33.5. The mean stage works for
  4 · (2 + 6 + 3.5) / 2 = 23 of these.
  """
  assert plans['data']['stage_stretch'] == plans['fsdp']['stage_stretch'] == 1
  record = plans['stage']
  assert record['stage_stretch'] == pytest.approx(33.5 / 23, abs=1e-4)
  own = record['flops_per_step']['executed'] / 8 / 1e12
  assert record['roofline_seconds']['compute'] == pytest.approx(own * 33.5 / 23, abs=1e-4)


def test_a_plan_adds_up(plans):
  for record in plans.values():
    assert record['fits']
    assert (
      sum(record['memory'].values())
      == record['peak_bytes_per_device']
      < record['capacity_bytes_per_device']
    )
    times = record['roofline_seconds']
    assert record['step_seconds'] == max(times.values()) == times[record['binds']]
    assert record['tokens_per_second'] > 0


def test_experts_of_two_widths_are_planned_by_their_units():
  """One of 6 experts is four times as wide: 9 units. A token has 2 experts, 3 units on average."""
  config = small_config(**{'moe.wide_experts': 1, 'moe.wide_factor': 4, 'moe.experts_per_token': 2})
  mesh = dict.fromkeys(('data', 'fsdp', 'tensor', 'stage'), 1) | {'expert': 4}
  own = config.data.batch_size // 4 * config.data.seq_len
  assert planner._rows_a_device(config, mesh) == own * 3
  # Devices hold 3, 3, 3 and 0 units: of the wide expert; of it and 2 more; of 3 more; of none.
  shares = 1 - 5 * 4 / 30, 1 - 3 * 2 / 30, 1 - 3 * 2 / 30, 0
  room = min(own, math.ceil(config.mesh.receive_buffer * own * max(shares)))
  assert planner._ragged_share(config, mesh) == pytest.approx(own * sum(shares) / 4 / room)
