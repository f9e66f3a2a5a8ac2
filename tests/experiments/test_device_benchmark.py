"""The device benchmark on tiny shapes: its records, also for wrong, missing and hanging kernels."""

import json
import time
import types
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import timing
from experiments.benchmarks.device import (
  cases,
  clock,
  drawn,
  layer,
  models,
  ops,
  records,
  sizes,
  supervise,
  worker,
)
from experiments.benchmarks.device.kept import kept
from moe.accounting import account
from moe.chips import CHIPS
from moe.errors import UserError
from moe.ops.combine import api as combine_api
from moe.ops.implementation import compiling_for
from moe.ops.router import api as router_api
from moe.planner.kernels.programs import Shape
from tests import in_process
from tests.experiments import stand_ins

TINY = Shape('tiny', 1, 8, 16, 1, 16, 4, 2, 8)


@pytest.fixture(autouse=True)
def nothing_kept():
  kept(None, lambda: None)


def test_an_op_beside_the_reference():
  forward, gradients = ops.records('grouped_matmul', TINY, 'bfloat16', 'xla', 2)
  assert forward['name'] == 'grouped_matmul tiny bfloat16 xla forward'
  assert gradients['name'].endswith('gradients')
  for row, products in ((forward, 1), (gradients, 3)):
    assert 0 <= row['ratio_median'] < 1 == row['bar'] and row['rounds'] == 2
    assert np.isclose(row['error'], row['ratio_median'] * row['tolerance'])
    achieved = products * 2 * 16 * 16 * 8 / row['ms'] * 1e3
    assert np.isclose(row['flops_per_second'], achieved)
    assert row['ms_min'] <= row['ms'] <= row['ms_max']
    assert row['share_of_peak_flops'] is None  # a CPU's peak is unknown
  # Rows and weights in bfloat16 and four sizes are read, a float32 result is written.
  moved = 2 * (16 * 16 + 4 * 16 * 8) + 4 * 4 + 4 * 16 * 8
  assert np.isclose(forward['bytes_per_second'], moved / forward['ms'] * 1e3)


def test_kernels_are_compared_and_refusals_are_told():
  with compiling_for('gpu', interpret=True):
    rows = ops.records('dispatch', TINY, 'float32', 'pallas_gpu', 1)
    (refused,) = ops.records('attention', TINY, 'float32', 'pallas_gpu', 1)
    (elsewhere,) = cases._implementations()
  assert [row['ratio_median'] for row in rows] == [0, 0]
  assert 'TF32' in refused['cannot_run'] and refused['ratio_median'] is None
  assert elsewhere['name'] == 'pallas_tpu' and 'needs a tpu' in elsewhere['cannot_run']


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_every_op_takes_what_is_drawn_for_it(dtype):
  def shapes(name, which):
    def run():
      op = drawn.op(name, TINY, dtype)
      return op.call(dtype, which, *op.floats, *op.others)

    return jax.tree.map(lambda x: x.shape, jax.eval_shape(run))

  for name in drawn.OPS:
    truth = shapes(name, 'reference')
    assert shapes(name, 'xla') == truth
    if (name, dtype) != ('attention', 'float32'):
      with compiling_for('gpu', interpret=True):
        assert shapes(name, 'pallas_gpu') == truth


def test_wrong_numbers_are_records(monkeypatch):
  reference = combine_api.IMPLEMENTATIONS['reference']
  tripled = lambda rows, gates, plan: 3 * reference(rows, gates, plan)
  monkeypatch.setitem(combine_api.IMPLEMENTATIONS, 'xla', tripled)
  rows = ops.records('combine', TINY, 'float32', 'xla', 1)
  assert np.isclose(rows[0]['error'], 2) and all(map(timing.is_over, rows))

  infinite = lambda rows, gates, plan: reference(rows, gates, plan) / 0
  monkeypatch.setitem(combine_api.IMPLEMENTATIONS, 'xla', infinite)
  rows = ops.records('combine', TINY, 'float32', 'xla', 1)
  assert 'not finite' in rows[0]['failed'] and timing.is_over(rows[0])

  def broken(*given):
    raise RuntimeError('no such instruction\nat line 3')

  monkeypatch.setitem(combine_api.IMPLEMENTATIONS, 'xla', broken)
  answer = worker.answer('combine', lambda rounds: ops.records(*_COMBINE, rounds), 1)
  assert answer.is_well
  assert answer.records[0]['failed'] == 'RuntimeError: no such instruction at line 3'


_COMBINE = 'combine', TINY, 'float32', 'xla'


def test_other_experts_than_the_references_are_wrong(monkeypatch):
  reference = router_api.IMPLEMENTATIONS['reference']

  def off_by_one(logits, is_token, k):
    routing = reference(logits, is_token, k)
    return routing._replace(experts_BLK=(routing.experts_BLK + 1) % logits.shape[-1])

  monkeypatch.setitem(router_api.IMPLEMENTATIONS, 'xla', off_by_one)
  forward, _ = ops.records('router', TINY, 'float32', 'xla', 1)
  assert '16 integers of .experts_BLK differ' in forward['failed']


def test_drawn_routing_is_a_permutation_and_tokens_differ():
  draw = drawn.Draw(TINY, 'bfloat16')
  plan = draw.plan()
  assert sorted(np.asarray(plan.row_TK).flat) == list(range(16))
  tokens = draw.normal(8, 16)
  assert tokens.dtype == jnp.bfloat16 and len(np.unique(np.asarray(tokens, np.float32))) > 64


def test_a_layer_beside_others(quick_compile):
  # The training step's test covers balanced routing.
  for other in ('dense', 'ragged_dot'):
    (row,) = layer.records(TINY, other, 1)
    assert row['name'] == f'layer tiny bfloat16 ÷ {other}'
    assert row['ratio_median'] > 0 and row['ms'] > 0 and row['max_vio'] > 0
    assert len(row['tokens_per_second_median']) == 2


def test_a_training_step_beside_one_with_balanced_routing(monkeypatch):
  """The steps are stand-ins: real ones take 10 seconds to compile, and are tested elsewhere."""
  balanced = []

  def make_train_step(config):
    balanced.append(config.ops.force_balanced_routing)
    vio = 0.0 if balanced[-1] else 2.0
    return lambda state, batch, numbers: (state + 1, {'max_vio_N': jnp.full(2, vio)})

  monkeypatch.setattr(models, 'make_train_step', make_train_step)
  monkeypatch.setattr(models, 'init_state', lambda config: jnp.zeros(()))
  (row,) = models.train_records(sizes.of_platform('cpu'), 2)
  assert row['name'].startswith('train step small 2b, 2 layers, 2 × 32 tokens')
  assert balanced == [False, True] and row['max_vio'] == 2 and row['rounds'] == 2
  of_step = account(sizes.of_platform('cpu').train).train_flops_per_token * 64
  assert np.isclose(row['flops_per_second'], of_step / row['ms'] * 1e3)


def test_decoding_is_what_more_tokens_take_longer(monkeypatch):
  now = 0.0

  def generate_tokens(run, prompts, new, sampling, seed, rows):
    nonlocal now
    now += 3 + 0.5 * new
    return [[0] * new] * rows

  spy = mock.create_autospec(models.generate_tokens, side_effect=generate_tokens)
  monkeypatch.setattr(models, 'generate_tokens', spy)
  monkeypatch.setattr(time, 'perf_counter', lambda: now)
  monkeypatch.setattr(models, 'init_params', lambda config, key: {'any': jnp.zeros(1)})
  (row,) = models.decode_records(sizes.of_platform('cpu'), 2, 1)
  assert row['name'] == 'decode small 16b, 2 layers, batch 2'
  assert (row['ms'], row['tokens_per_second']) == (500, 4)


def test_models_are_cut_to_the_memory(monkeypatch):
  config = sizes.of_platform('tpu').train
  # 9 layers have 2B parameters, 6 have 1.35B; at 20 bytes each, 1.4B fit.
  stats = {'bytes_limit': 20 * 1_400_000_000}
  device = types.SimpleNamespace(memory_stats=lambda: stats)
  monkeypatch.setattr(jax, 'devices', lambda: [device])
  assert [each.model.num_layers for each in models._cut(config, 20)] == [6, 4, 2, 1]
  asked = []

  def make(fewer):
    asked.append(fewer.model.num_layers)
    if len(asked) < 3:
      raise RuntimeError('RESOURCE_EXHAUSTED: out of memory')
    return 'made'

  assert models._first_that_fits(config, 20, make) == 'made' and asked == [6, 4, 2]


def test_one_token_reads_what_it_activates_and_many_read_all():
  config = sizes.of_platform('tpu').decode
  params = {'any': np.zeros(1, np.float32)}
  counted = account(config)
  embedding = config.model.vocab_size * config.model.d_model
  assert np.isclose(models._read(config, params, 1), 4 * (counted.active_params - embedding))
  assert np.isclose(models._read(config, params, 9999), 4 * (counted.total_params - embedding))


def test_rates_are_told_beside_the_chip_s(monkeypatch):
  device = types.SimpleNamespace(device_kind='TPU v6 lite')
  monkeypatch.setattr(jax, 'devices', lambda: [device])
  chip = CHIPS['v6e']
  half = records.rates(1000, chip.flops / 2, chip.hbm / 4)
  assert (half['share_of_peak_flops'], half['share_of_peak_bytes']) == (0.5, 0.25)
  assert records.rates(1000, 1e9, 0, 'float32')['share_of_peak_flops'] is None


def test_several_calls_are_in_flight():
  run = jax.jit(lambda x: x + 1)
  made = []
  seconds = clock.measure(lambda: made.append(run(jnp.zeros(()))) or made[-1], 2)
  assert len(seconds) == 2 and len(made) > 4


def test_every_op_and_implementation_is_a_case():
  parts = cases.parts(sizes.of_platform('cpu'))
  names = [name for part in parts for name in part.cases]
  assert len(names) == len(set(names)) and parts[0].name == 'machine'
  for op in drawn.OPS:
    for shape in ('small 2b', 'small 16b'):
      assert any(name.startswith(f'{op} {shape}') and name.endswith('xla') for name in names)
  answer = worker.answer('implementations', parts[0].cases['implementations'], 1)
  assert {row['name'] for row in answer.records} == {'pallas_tpu', 'pallas_gpu'}
  for name in ('big product', 'big copy'):
    (row,) = parts[0].cases[name](1)
    assert row['bytes_per_second'] > 0


def test_crashes_and_hangs_are_records(monkeypatch):
  monkeypatch.setattr(supervise, '_MOST', 3.0)
  rows = list(supervise.records(stand_ins.serve, 1, 100.0))
  assert [row['name'] for row in rows] == [*stand_ins.CASES, 'put off']
  assert all(row['device'] == 'none' for row in rows)
  failed = {row['name']: row['failed'] for row in rows if 'failed' in row}
  assert failed == {
    'crashes': 'the process crashed, exit code 3: illegal address',
    'hangs': 'ended after 3 s',
  }
  # The process that said it was not well was replaced, too.
  assert len({row['process'] for row in rows if 'process' in row}) == 3
  json.dumps(rows)


def test_what_there_is_no_time_for_is_left_out(monkeypatch):
  monkeypatch.setattr(supervise, '_LEAST', 0.5)
  rows = list(supervise.records(stand_ins.slow, 1, 3.0))
  assert [row['name'] for row in rows] == ['hangs', 'never begun']
  assert all('no time' in row['left_out'] for row in rows) and not any(map(timing.is_over, rows))


def test_a_device_that_does_not_start_is_one_line():
  with pytest.raises(UserError, match=r'cannot be used.*exit code 1: no such device'):
    list(supervise.records(stand_ins.refuse, 1, 60.0))


ROWS = [
  records.record('attention', bar=1.0, error=0.04, ms=2.0, flops_per_second=5e13)
  | {'ratio_median': 2.0, 'bytes_per_second': 1e12, 'share_of_peak_flops': 0.25}
  | {'share_of_peak_bytes': None},
  records.record('layer ÷ dense', ms=0.5, flops_per_second=None, bytes_per_second=2e9)
  | {'ratio_median': 1.5, 'ratio_min': 1.0, 'ratio_max': 2.0}
  | {'share_of_peak_flops': None, 'share_of_peak_bytes': 0.5},
  records.record('pallas_tpu', cannot_run='needs a tpu'),
  records.record('decode', left_out='no time'),
]
TABLE = """\
chip, jax 1.2, commit abc. Beside a rate its share of the chip's peak.

| op | error ÷ tolerance | ms | TFLOP/s | GB/s |
|---|---|---|---|---|
| attention | **2** | 2 | 50 (25%) | 1,000 |

| ÷ | time ratio (min–max) | ms | TFLOP/s | GB/s |
|---|---|---|---|---|
| layer ÷ dense | 1.50 (1.00–2.00) | 0.5 |  | 2 (50%) |

Does not run there:

- pallas_tpu: needs a tpu

Left out:

- decode: no time
"""


def test_the_table_of_a_file(tmp_path):
  where = {'device': 'chip', 'jax': '1.2', 'commit': 'abc'}
  path = tmp_path / 'device.json'
  path.write_text(json.dumps([row | where for row in ROWS]))
  assert in_process.check('benchmark', f'--read={path}') == TABLE
  path.write_text('[{}]')
  assert f'--read={path} is not what' in in_process.error_line('benchmark', f'--read={path}')
