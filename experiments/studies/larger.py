"""Tables 2, 8 and 9: DeepSeekMoE matches a GShard of 1.5 times its experts, and nears a dense model of all of them.

  python -m launch.sweep --sweep=experiments/studies/larger.py

GShard×1.2 and ×1.5 have experts 1.2 and 1.5 times as wide, in parameters and compute; Dense×4 and ×16 have 4 and 16
FFNs a layer that every token passes: ×16, with the parameters of the MoE all activated, is its upper bound. The paper's
numbers (2B, Pile loss):

  GShard 1.867   GShard×1.2 1.824   GShard×1.5 1.808   Dense×4 1.908   Dense×16 1.806   DeepSeekMoE 1.808

What has to carry over: DeepSeekMoE no worse than GShard×1.2 and about GShard×1.5, below Dense×4, near Dense×16.
"""

from experiments.studies.common import PROXY, Run, Scale


def sweep(scale: Scale = PROXY) -> list[Run]:
  names = ('gshard', 'gshard_x1_2', 'gshard_x1_5', 'dense_x4', 'dense_x16', 'deepseek_moe')
  return [scale.run(variant) for variant in names]
