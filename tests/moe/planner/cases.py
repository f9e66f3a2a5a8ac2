"""Plans for eight devices of the CPU; run by test_step.py in a process of its own, which has them.

python -m tests.moe.planner.cases    # one JSON line a case
"""

import json

import jax

from moe.chips import Chip
from moe.planner import planner
from moe.planner.compile_step import compile_for_devices
from moe.planner.machine import Machine
from tests.small import small_config

CPUS = Machine('cpu:8', Chip('cpu', 'cpu', 2**30, 1e12, 1e11, 1e10, 0), (8,))
DENSE = {
  'moe.num_experts': 0,
  'moe.experts_per_token': 0,
  'moe.num_shared_experts': 0,
  'moe.expert_balance_loss': 0.0,
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
  'stage': {'mesh.data': 4, 'mesh.stage': 2, 'train.microbatches': 4},  # 2 layers, and 1
}


def main():
  for name, overrides in CASES.items():
    config = small_config(**DENSE | overrides)
    record = planner.describe(config, CPUS, compile_for_devices(config, jax.devices(), 'cpu'))
    print(json.dumps({'case': name} | record), flush=True)


if __name__ == '__main__':
  main()
