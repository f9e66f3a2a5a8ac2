"""The 2B validation models: Table 1 (comparison), Tables 2, 8 and 9 (upper bounds)
and Figure 6 (half the activated experts).

  python -m launch.train --config=experiments/validation.py:deepseek_moe --workdir=DIR

All: 9 layers, d 1280, 10 heads of 128, 8K vocabulary, 25,000 steps of 2048 × 2048 tokens (100B;
Section 4.1.3, Table 7). On a CPU take the same names from `proxy.py`. Expected:

  variant            total / active params   FLOPs per 2K tokens   Pile loss
  dense              0.2B / 0.2B             2.9T                  2.060
  hash               2.0B / 0.2B             2.9T                  1.932
  switch             2.0B / 0.2B             2.9T                  1.881
  gshard             2.0B / 0.3B             4.3T                  1.867
  gshard_x1_2        experts 2.3B / 0.28B    –                     1.824
  gshard_x1_5        experts 2.83B / 0.35B   5.8T                  1.808
  dense_x4           experts 0.47B           –                     1.908
  dense_x16          experts 1.89B           24.6T                 1.806
  deepseek_moe       2.0B / 0.3B             4.3T                  1.808
  deepseek_moe_half  –                       –                     – (Figure 6: beats gshard)

Planned memory, step time and MFU on target machines: experiments/results/plans.md (`make plan`).
"""

from ml_collections import ConfigDict

from experiments import variants
from experiments.base import expert_width

_D = 1280

# For v5e:2x4: 8 chips share the parameters, and each takes 8 sequences a microbatch.
TRAINING = {'model.remat': 'full', 'train.microbatches': 32, 'mesh.data': 1, 'mesh.fsdp': -1}


def _experts(shared: int, routed: int, active: int, size: float) -> dict:
  return variants.experts(shared, routed, active, expert_width(_D, size))


VARIANTS = {
  'deepseek_moe': _experts(shared=1, routed=63, active=7, size=0.25),
  # Half the activated experts, trained so from scratch (Figure 6).
  'deepseek_moe_half': _experts(shared=1, routed=63, active=3, size=0.25),
  'dense': variants.dense(num_layers=9, d_ff=expert_width(_D, 1)),
  # A fixed table replaces the learned router, so there is nothing for a balance loss to teach.
  'hash': _experts(shared=0, routed=16, active=1, size=1)
  | {'moe.router': 'hash', 'moe.expert_balance_weight': 0.0},
  'switch': _experts(shared=0, routed=16, active=1, size=1),
  'gshard': _experts(shared=0, routed=16, active=2, size=1),
  'gshard_x1_2': _experts(shared=0, routed=16, active=2, size=1.2),
  'gshard_x1_5': _experts(shared=0, routed=16, active=2, size=1.5),
  # The upper bound of a MoE of n experts: all n are always active, ungated, as shared experts are.
  'dense_x4': _experts(shared=4, routed=0, active=0, size=1),
  # Every token activates all 16 FFNs: only half as many sequences fit into a microbatch.
  'dense_x16': _experts(shared=16, routed=0, active=0, size=1) | {'train.microbatches': 64},
}


def get_config(name: str = 'deepseek_moe') -> ConfigDict:
  return variants.build(__file__, {key: TRAINING | own for key, own in VARIANTS.items()}, name)
