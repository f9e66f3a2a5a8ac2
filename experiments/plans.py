"""The configs that `make plan` compiles, by machine. The resulting plans are in
experiments/results/plans.md and decode_plans.md.

  python -m experiments.plans [decode]        # prints one CONFIG@MACHINE[,DTYPE] a line

To plan any other config, run python -m launch.plan.
"""

import sys

# A model that has two config names is listed once.
MACHINES = {
  'v5e:2x4': """
    validation:deepseek_moe validation:deepseek_moe_half validation:dense validation:hash
    validation:switch validation:gshard validation:gshard_x1_2 validation:gshard_x1_5
    validation:dense_x4 validation:dense_x16
    ablations:granularity_1_1_15 ablations:granularity_1_3_31 ablations:shared_2 ablations:shared_4
  """,
  'v5p:4x4x4': """
    scaling:deepseek_moe_16b scaling:deepseek_7b scaling:llama2_7b scaling:deepseek_moe_13b
    scaling:gshard_13b_x1_2 scaling:gshard_13b_x1_5
  """,
  'v5e:8x8': 'scaling:deepseek_moe_16b',
  'h100:8': 'scaling:deepseek_moe_16b',
  'v5p:8x8x8': """
    scaling:deepseek_moe_145b scaling:deepseek_moe_142b_half scaling:gshard_137b
    scaling:deepseek_67b
  """,
}
PLANS = [f'{name}@{machine}' for machine, names in MACHINES.items() for name in names.split()]
# For the paper's claim of 2.5 times the speed (Section 5.2.1): both models on each machine.
DECODE_PLANS = [
  f'scaling:{name}@{machine}'
  for machine in ('a100-40:1', 'h100:1', 'v5e:1', 'v5e:4')
  for name in ('deepseek_moe_16b', 'deepseek_7b')
]
# With quantised weights; in int4 the 16B also fits on a chip of 16 GB.
DECODE_PLANS += [
  f'scaling:deepseek_moe_16b@{machine}'
  for machine in ('a100-40:1,int8', 'a100-40:1,int4', 'v5e:1,int4')
]

if __name__ == '__main__':
  print('\n'.join(DECODE_PLANS if sys.argv[1:] == ['decode'] else PLANS))
