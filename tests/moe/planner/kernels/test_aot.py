"""Kernels compiled ahead of time for machines that are not here:
a few in the compilers' own environments, and what they cost.
"""

import json
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest

from moe.ops.tpu import visits
from moe.planner.kernels import gpu, programs, tpu
from tests import in_process
from tests.launch.runs import programs as programs_of_launch
from tests.small import plain_environment

ROOT = Path(__file__).parents[4]
OPS = {'dispatch', 'combine', 'grouped_matmul', 'routed_ffn', 'router', 'attention'}


@pytest.mark.parametrize(('environment', 'target'), [('tpu', 'v5p'), ('gpu', 'h100')])
def test_every_op_compiles_forward_and_backward(tmp_path, environment, target):
  python = ROOT / f'.venv-{environment}/bin/python'
  if not (python.parent.parent / '.installed').exists():
    pytest.skip(f'the {environment} compiler is not installed: make setup-aot')
  out = tmp_path / 'records.jsonl'
  options = [
    f'--targets={target}',
    '--shapes=odd',
    '--dtypes=bfloat16',
    '--nocosts',
    f'--out={out}',
  ]
  command = [python, '-m', 'launch.aot', *options]
  done = subprocess.run(
    command, cwd=ROOT, env=plain_environment(), capture_output=True, text=True, check=False
  )
  if environment == 'gpu' and sys.version_info >= (3, 12):
    # From Python 3.12 on, the environment's jax compiles these only on the GPU that runs them.
    assert done.returncode == 1 and 'only on the GPU that runs them' in done.stdout
    assert 'make setup-aot PYTHON=python3.11' in done.stdout
    return
  assert done.returncode == 0, done.stdout + done.stderr
  records = [json.loads(line) for line in out.read_text().splitlines()]
  assert {record['op'] for record in records} == OPS
  for record in records:
    assert record['kernels'], f'{record["op"]}: no kernel'
    for kernel in record['kernels']:
      if environment == 'gpu':
        assert kernel['spill_bytes'] == 0
        assert kernel['registers'] > 0
      else:
        assert 0 < kernel['vmem_bytes'] <= 60 << 20, kernel
  if environment == 'gpu':
    [layer] = [record for record in records if record['op'] == 'routed_ffn']
    products = [
      kernel
      for kernel in layer['kernels']
      if kernel['kernel'] not in ('routed_ffn_combine', 'routed_ffn_d_tokens')
    ]
    assert len(products) == 6
    assert all(kernel['tensor_core'] for kernel in products)


def test_blocks_of_few_or_wide_rows_are_small():
  """Two arrays of 512 rows of 10,944 bfloat16 numbers, double-buffered, would fill a v5p's VMEM."""
  assert visits.rows_per_block(2**16, 16, 2 * 1408) == 512
  assert visits.rows_per_block(2**16, 64, 2 * 1408) == 256
  assert visits.rows_per_block(2**16, 16, 2 * 10_944) == 256
  assert visits.rows_per_block(2**16, 16, 4 * 10_944) == 128
  assert visits.rows_per_block(13, 4, 2 * 1408) == 16


@pytest.mark.parametrize('module', [tpu, gpu], ids=['tpu', 'gpu'])
@pytest.mark.parametrize('shape', programs.PAPER[:2], ids=lambda shape: shape.name)
def test_flops_are_close_to_the_least(module, shape):
  """Counts the traced kernels of a 2B and a 16B layer: forward and backward, balanced routing."""
  costs = module.layer_costs(shape, jnp.bfloat16)
  assert (
    costs['least_flops']
    == 18 * shape.tokens * shape.experts_per_token * shape.d_model * shape.d_expert
  )
  assert 1 <= costs['flops_ratio'] <= 1.3
  assert sum(item['flops'] for item in costs['kernels']) == costs['flops']


@pytest.mark.parametrize(
  ('options', 'words'),
  [
    ((), 'is none of v5e, v5p, v6e, h100, a100-40'),
    (('--targets=h200',), "'h200' is none of v5e, v5p, v6e, h100, a100-40"),
    (('--targets=v5p,h100',), "'h100' is none of v5e, v5p, v6e"),
  ],
)
def test_wrong_targets_are_named_in_one_line(options, words):
  assert words in in_process.error_line('aot', *options)


def test_a_process_of_its_own_says_so_too():
  assert "'h200' is none of" in programs_of_launch.error_line('aot', '--targets=h200')
