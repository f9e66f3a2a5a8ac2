"""Figure 4: DeepSeekMoE depends more on its top routed experts than GShard×1.5: its experts are less redundant.

  python -m launch.sweep --sweep=experiments/studies/disable_top.py

On the trained models, for each token a share of the routed experts, those of the highest affinity, is masked, and the
top k of the rest are taken. GShard×1.5 starts from the same loss. The paper's numbers
(2B, Pile loss, read off the plot):

  share masked    0      1/16   2/16   3/16   4/16
  DeepSeekMoE     1.8    7.5    8.2    8.7    9.1
  GShard×1.5      1.8    5.6    7.5    7.6    7.7

What has to carry over: the loss of DeepSeekMoE rises more at every share.
"""

from experiments.studies.common import PROXY, Run, Scale

_MASKED = {f'masked {share}/16': {'masked_share': share / 16} for share in range(1, 5)}  # 0 is the run's own loss


def sweep(scale: Scale = PROXY) -> list[Run]:
  return [scale.run(variant, evaluations=_MASKED) for variant in ('deepseek_moe', 'gshard_x1_5')]
