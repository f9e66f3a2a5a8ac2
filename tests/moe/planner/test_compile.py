"""A small config is planned for real machines, in the compilers' own environments
where those are installed.
"""

import json
import subprocess

import pytest

from tests.launch.runs.programs import ROOT
from tests.small import plain_environment

# A step small enough to compile in seconds, with the published models' layers, loss and optimizer.
SMALL = (
  '--config=experiments/proxy.py:dense',
  '--config.model.num_layers=2',
  '--config.model.num_dense_layers=2',
  '--config.model.dtype=bfloat16',
  '--config.mesh.data=1',
  '--config.mesh.fsdp=-1',
)


def plan(environment: str, *options: str) -> subprocess.CompletedProcess:
  """Runs launch.plan with a compiler's own Python; skips the test if that is not installed."""
  python = ROOT / f'.venv-{environment}/bin/python'
  if not (python.parent.parent / '.installed').exists():
    pytest.skip(f'the {environment} compiler is not installed: make setup-aot')
  return subprocess.run(
    [python, '-m', 'launch.plan', *options],
    cwd=ROOT,
    env=plain_environment(),
    capture_output=True,
    text=True,
    timeout=300,
  )


@pytest.mark.parametrize(('environment', 'topology'), [('tpu', 'v5e:2x2'), ('gpu', 'h100:4')])
def test_a_step_with_experts_is_planned(environment, topology):
  experts = ('--config.moe.num_experts=8', '--config.mesh.expert=2')
  options = (
    '--config=experiments/proxy.py:deepseek_moe',
    *SMALL[1:],
    *experts,
    '--config.model.num_dense_layers=1',
    '--config.model.d_ff=512',
    f'--topology={topology}',
    '--format=json',
  )
  done = plan(environment, *options)
  assert done.returncode == 0, done.stdout + done.stderr
  record = json.loads(done.stdout)
  assert record['fits']
  assert record['mesh'] == {'fsdp': 2, 'expert': 2}
  assert record['loops_counted_once'] == []
  assert 0 < record['peak_bytes_per_device'] < record['capacity_bytes_per_device']
  assert record['flops_per_step']['model_over_accounting'] == pytest.approx(1, abs=0.05)
  sent = record['collective_bytes_per_device']
  # One MoE layer: each of a device's 4 · 256 tokens crosses to the other device at most once and
  # comes back, forward and backward: 4 times D bfloat16 numbers, and a few words of bookkeeping.
  rows = 4 * 256 * 256 * 2
  assert 4 * rows * 0.9 <= sent['ragged-all-to-all']['expert'] <= 4 * rows * 1.6
  assert {axis for row in sent.values() for axes in row for axis in axes.split('+')} == {
    'fsdp',
    'expert',
  }
  assert record['binds'] in record['roofline_seconds']
  assert 0 < record['mfu'] < 1


@pytest.mark.parametrize(('environment', 'topology'), [('tpu', 'v5e:2x2'), ('gpu', 'h100:4')])
def test_a_pipeline_is_planned(environment, topology):
  """3 layers on 2 stages, and 4 microbatches of 4 sequences; a device has half of each."""
  stages = ('--config.mesh.stage=2', '--config.train.microbatches=4', '--config.model.num_layers=3')
  options = (
    *SMALL,
    *stages,
    '--config.model.num_dense_layers=3',
    f'--topology={topology}',
    '--format=json',
  )
  done = plan(environment, *options)
  assert done.returncode == 0, done.stdout + done.stderr
  record = json.loads(done.stdout)
  assert record['mesh'] == {'stage': 2, 'fsdp': 2}
  sent = record['collective_bytes_per_device']
  # Each stage sends in one direction at a time: in 5 of the 10 ticks it has something to send.
  assert sent['collective-permute'] == {'stage': 5 * 2 * 256 * 256 * 2}
  # Stages do not divide the layers, so the weights are exchanged; no stage holds them whole.
  assert sent['all-to-all']['stage'] > 0
  gathered = sum(size for axes, size in sent['all-gather'].items() if 'stage' in axes)
  assert gathered < record['memory']['parameters'] / 4


def test_a_slice_that_does_not_exist_is_one_line():
  done = plan('tpu', *SMALL, '--topology=v5e:3x7')
  assert done.returncode == 2
  [line] = [line for line in done.stderr.splitlines() if line.startswith('error: ')]
  assert '--topology=v5e:3x7' in line


def test_what_does_not_fit_says_by_how_much():
  options = (
    '--config.model.vocab_size=4194304',
    '--config.data.vocab_size=4096',
    '--config.model.d_model=4096',
  )
  done = plan(
    'tpu', *SMALL, *options, '--config.model.head_dim=1024', '--topology=v5e:2x2', '--format=json'
  )
  assert done.returncode == 1, done.stdout + done.stderr
  record = json.loads(done.stdout)
  assert not record['fits']
  assert record['over_bytes_per_device'] > 0
