"""Decoding planned for CPU devices, without any device's kernels; bytes are counted by hand."""

import json
import re

import jax
import pytest

from moe.chips import Chip
from moe.errors import UserError
from moe.planner import decode, decode_report, hlo, report
from moe.planner.compile_decode import Decoding, compile_for_devices
from moe.planner.machine import Machine, parse, with_memory
from tests.launch.runs import programs
from tests.moe.planner.test_compile import plan
from tests.small import compiled_anew, small_config

V, D, F, E, K, X, S, ROWS = 32, 16, 8, 8, 2, 16, 64, 4  # X: heads · head width
SMALL = {
  'model.vocab_size': V,
  'model.d_model': D,
  'model.num_layers': 3,
  'model.num_dense_layers': 1,
  'model.d_ff': 32,
  'model.num_heads': 4,
  'model.num_kv_heads': 4,
  'model.head_dim': 4,
  'moe.num_experts': E,
  'moe.experts_per_token': K,
  'moe.num_shared_experts': 1,
  'moe.d_expert': F,
  'ops.implementation': 'xla',
}
CHIP = Chip('cpu', 'cpu', 2**30, 1e12, 1e11, 1e10, 0)
EXPERT, OF_LAYER = 3 * D * F, 4 * D * X + 2 * D
# The weights that every row reads whole. The embedding is not among them: it is looked up.
ALWAYS = 3 * OF_LAYER + 3 * D * 32 + 2 * (EXPERT + D * E) + V * D + D
CACHE = ROWS * S * 3 * 2 * X


def _decoding(devices, axes=None, **overrides):
  config = small_config(**SMALL | overrides)
  return Decoding.of(config, devices, axes, 'float32', ROWS, context=S)


@pytest.fixture(scope='module')
def plans():
  """Maps a number of devices to the plan."""
  made = {}
  with compiled_anew():
    for devices in (1, 4):
      machine = Machine(f'cpu:{devices}', CHIP, (devices,))
      decoding = _decoding(devices)
      compiled = compile_for_devices(decoding, jax.devices()[:devices], 'cpu')
      made[devices] = decode.describe(decoding, machine, compiled)
  return made


def test_memory_is_that_of_the_weights_and_the_cache(plans):
  for devices, record in plans.items():
    memory = record['memory']
    assert record['fits'] and record['mesh'] == ({'tensor': 4} if devices > 1 else {})
    assert memory['cache'] == 4 * CACHE / devices
    assert min(memory['temporaries'], memory['temporaries_of_prefill']) >= 0
  # Norms and routers are whole on every device.
  weights = 4 * (ALWAYS + V * D + 2 * E * EXPERT)
  whole = 4 * (7 * D + 2 * D * E)
  assert plans[1]['memory']['weights'] == weights
  assert plans[4]['memory']['weights'] == (weights - whole) / 4 + whole


def test_the_least_is_every_chosen_expert_and_all_else_once(plans):
  chosen = E * (1 - (1 - K / E) ** ROWS)
  least = 4 * (ALWAYS + ROWS * D + 2 * chosen * EXPERT + CACHE)
  for devices, record in plans.items():
    assert record['least_hbm_bytes_per_device'] == pytest.approx(least / devices, abs=1)
    assert record['hbm_bytes_per_device'] > record['least_hbm_bytes_per_device']
    assert record['step_seconds'] == pytest.approx(
      max(record['roofline_seconds'].values()), abs=1e-6
    )


def test_devices_along_tensor_add_up_what_each_has(plans):
  assert plans[1]['collective_bytes_per_device'] == {}
  sent = plans[4]['collective_bytes_per_device']
  assert set(axis for row in sent.values() for axis in row) == {'tensor'}
  # Two sums of rows × D per layer, and the embedding's. A ring sends 2 · 3/4 of the array.
  assert sent['all-reduce']['tensor'] >= 7 * ROWS * D * 4 * 2 * 3 / 4


def test_of_a_kernel_only_chosen_experts_count():
  line = (
    '%y = f32[6,8]{1,0} custom-call(%x, %w, %s), custom_call_target="k", '
    'metadata={op_name="jit(step)/Block/NAME/pallas_call"}'
  )
  shapes = ['f32[6,16]{1,0}', 'f32[16,16,8]{2,1,0}', 's32[1,1,48]{2,1,0}']
  entry = 'ENTRY %e (x: f32[6,16]) -> f32[6,8] {\n  LINE\n}\n'
  for name, moved in (('routed_ffn_up', (48 + 96 + 48 + 3 * 128) * 4), ('other', None)):
    computations, _ = hlo.parse(entry.replace('LINE', line.replace('NAME', name)))
    [instruction] = computations['e'].instructions.values()
    assert decode._moved_by_kernel(8, 3.0, instruction, shapes) == moved


def test_a_dense_model_is_read_whole(plans):
  dense = {'moe.num_experts': 0, 'moe.experts_per_token': 0, 'moe.num_shared_experts': 0}
  decoding = _decoding(
    1, **dense, **{'model.num_dense_layers': 3, 'moe.expert_balance_weight': 0.0}
  )
  weights = 3 * (OF_LAYER + 3 * D * 32) + V * D + D + ROWS * D
  assert decode.least_bytes(decoding) == 4 * (weights + CACHE)


def test_the_table_compares_with_the_same_setting_of_the_baseline(plans):
  ours = plans[1] | {'config': 'ours', 'tokens_per_second': 30.0}
  base = plans[1] | {'config': 'base', 'tokens_per_second': 10.0}
  other = base | {'context': 7, 'tokens_per_second': 1.0}
  table = decode_report.table([ours, base, other], 'base')
  rows = [[cell.strip() for cell in row.split('|')] for row in table.splitlines() if 'cpu:1' in row]
  assert [(row[1], row[-2]) for row in rows] == [('ours', '3.00'), ('base', ''), ('base', '')]
  text = decode_report.text(ours)
  assert '4 rows of 64: fits' in text and re.search(r'of the least: chosen weights once', text)


def test_plans_of_a_setting_replace_each_other(tmp_path, plans):
  path, table = tmp_path / 'd.jsonl', lambda records: f'{len(records)}\n'
  report.record_plans(path, [plans[1], plans[1] | {'batch': 8}], table, decode_report.KEYS)
  report.record_plans(path, [plans[1] | {'fits': False}], table, decode_report.KEYS)
  assert [json.loads(line)['fits'] for line in path.read_text().splitlines()] == [False, True]
  assert path.with_suffix('.md').read_text() == '2\n'


@pytest.mark.parametrize(
  ('options', 'words'),
  [
    (('--batch=1,x',), "--batch=1,x: 'x' must be a number"),
    (('--mesh=tensor',), "'tensor' must be AXIS=DEVICES"),
    (('--context=-1',), '--context=-1 must be at least 1'),
    (('--search',), '--search ranks training steps'),
    (('--memory_fraction=2',), '--memory_fraction=2.0 must be above 0'),
  ],
)
def test_wrong_options_are_one_line(options, words):
  config = '--config=experiments/scaling.py:deepseek_moe_16b'
  flags = '--program=decode', '--topology=a100-40:1'
  assert words in programs.error_line('plan', config, *flags, *options)


def test_more_of_a_gpu_can_be_given():
  whole = with_memory(parse('a100-40:1'), 1.0).chip
  assert whole.capacity == whole.memory == 42_331_013_120
  assert parse('a100-40:1').chip.capacity == 0.75 * whole.memory
  with pytest.raises(UserError, match='goes with GPUs, not v5e'):
    with_memory(parse('v5e:4'), 0.9)


def test_rows_are_those_of_a_program():
  decoding = _decoding(1)._replace(batch=3)
  with pytest.raises(UserError, match='--batch=3: programs have 4 rows'):
    compile_for_devices(decoding, jax.devices()[:1], 'cpu')


@pytest.mark.parametrize(('environment', 'topology'), [('tpu', 'v5e:1'), ('gpu', 'a100-40:1')])
def test_experts_are_read_out_of_the_stack(environment, topology):
  """As the compilers themselves count it, no layer's experts are read whole or copied."""
  done = plan(
    environment,
    '--config=experiments/proxy.py:deepseek_moe',
    '--config.model.dtype=bfloat16',
    '--config.model.d_model=512',
    '--config.moe.d_expert=256',
    f'--topology={topology}',
    *('--program=decode', '--context=256', '--format=json'),
  )
  assert done.returncode == 0, done.stdout + done.stderr
  [record] = json.loads(done.stdout)
  assert record['fits'] and record['mesh'] == {}
  # Nine tenths of the weights are experts', and a row chooses a ninth of the experts.
  assert record['hbm_bytes_per_device'] < 0.5 * record['memory']['weights']
  assert record['memory']['temporaries'] < 0.1 * record['memory']['weights']
