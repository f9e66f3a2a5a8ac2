"""Which configs `make plan` compiles for which machine;
experiments/results/plans.md has what came of it.

  python -m experiments.plans        # a CONFIG@MACHINE a line

A config that stands nowhere here is planned by whoever asks for it: python -m launch.plan.
"""

# Configs that are the same model under two names stand here once.
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

if __name__ == '__main__':
  print('\n'.join(PLANS))
