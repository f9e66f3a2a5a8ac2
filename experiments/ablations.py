"""Figure 3 (finer segmentation and one shared expert) and Section 4.4 (shared : routed),
at the 2B scale.

  python -m launch.train --config=experiments/ablations.py:granularity_1_3_31 --workdir=DIR

Everything but the experts is as in `validation.py:deepseek_moe`. All variants have the same total
and activated parameters. On a CPU take the same names from `proxy.py`. Expected:

- granularity_S_K_E has S shared and E routed experts, each 2 / (S + K) of a standard FFN, and sends
  a token to K routed ones. Figure 3: 0+2/16 (the GShard model) < 1+1/15 < 1+3/31 < 1+7/63 on the
  downstream tasks, mostly monotone.
- shared_S makes S of 64 quarter-size experts shared ones and activates 8 in all. Pile loss 1.808,
  1.806, 1.811 for S = 1, 2, 4.

Planned memory, step time and MFU on target machines: experiments/results/plans.md (`make plan`).
"""

from ml_collections import ConfigDict

from experiments import validation, variants
from experiments.base import expert_width


def _experts(shared: int, routed: int, active: int) -> dict:
  """Experts whose activated ones add up to two standard FFNs: their number sets their size."""
  return variants.experts(shared, routed, active, expert_width(1280, 2 / (shared + active)))


VARIANTS = {
  'granularity_0_2_16': _experts(shared=0, routed=16, active=2),
  'granularity_1_1_15': _experts(shared=1, routed=15, active=1),
  'granularity_1_3_31': _experts(shared=1, routed=31, active=3),
  'granularity_1_7_63': _experts(shared=1, routed=63, active=7),
  'shared_1': _experts(shared=1, routed=63, active=7),
  'shared_2': _experts(shared=2, routed=62, active=6),
  'shared_4': _experts(shared=4, routed=60, active=4),
}


def get_config(name: str = 'granularity_0_2_16') -> ConfigDict:
  return variants.build(
    __file__, {key: validation.TRAINING | own for key, own in VARIANTS.items()}, name
  )
