"""Figure 6: a DeepSeekMoE trained with half the activated experts still beats GShard.

  python -m launch.sweep --sweep=experiments/studies/half_active.py

1 + 3 of 63 experts of a quarter size, trained so from scratch: as much compute as one FFN, half of GShard's (2 of 16).
The paper shows no losses but six downstream tasks, on all of which it is ahead of GShard, at the same total parameters.
What has to carry over: its loss is below GShard's, and above that of the DeepSeekMoE with 1 + 7.
"""

from experiments.studies.common import PROXY, Run, Scale


def sweep(scale: Scale = PROXY) -> list[Run]:
  return [scale.run(variant) for variant in ('deepseek_moe_half', 'gshard', 'deepseek_moe')]
