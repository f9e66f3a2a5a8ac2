"""Tables 3 and 6: DeepSeekMoE reaches a dense model's loss with about 40% of its compute, and less when larger.

  python -m launch.sweep --sweep=experiments/studies/scaling.py

Dense and DeepSeekMoE at three widths, everything else equal: held-out loss against training FLOPs, two curves, and the
share of the dense compute at which DeepSeekMoE reaches the same loss. The paper's numbers:

  DeepSeekMoE 16B beside DeepSeek 7B      40.5% of the FLOPs   Pile bits per byte 0.74 and 0.75
  DeepSeekMoE 145B beside DeepSeek 67B    28.5%                Pile loss 1.876 and 1.905
  142B, half activated, beside 67B        18.2%                Pile loss 1.888 and 1.905

What has to carry over: at equal compute the loss of DeepSeekMoE is lower, at a share of the dense compute well below 1.
"""

from experiments.studies.common import PROXY, Run, Scale


def sweep(scale: Scale = PROXY) -> list[Run]:
  return [
    scale.run(variant, name=f'{variant}_d{width}', d_model=width)
    for width in scale.widths
    for variant in ('dense', 'deepseek_moe')
  ]
