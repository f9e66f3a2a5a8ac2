"""Figure 3 (finer segmentation and one shared expert) and Section 4.4 (shared : routed),
at the 2B scale.

  python -m launch.train --config=experiments/ablations.py:granularity_1_3_31 --workdir=DIR

Everything but the experts is `validation.py:deepseek_moe`; total and activated parameters are equal
in all. On a CPU take the same names from `proxy.py`. Expected:

- granularity_S_K_E has S shared + E routed experts, K of them a token, of 2 / (S + K) of a
  standard FFN each. Figure 3: 0+2/16 (the GShard model) < 1+1/15 < 1+3/31 < 1+7/63 on the
  downstream tasks, mostly monotone.
- shared_S isolates S of 64 experts of a quarter size and activates 8 in all. Pile loss 1.808,
  1.806, 1.811 for 1, 2, 4.

Memory, step time and MFU on machines that are not here: experiments/results/plans.md (`make plan`).
"""

from ml_collections import ConfigDict

from experiments import validation, variants
from experiments.base import expert_width


def _experts(shared: int, routed: int, active: int) -> dict:
  """Two standard FFNs' worth of activated experts, so that their number sets their size."""
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
