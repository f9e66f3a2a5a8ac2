"""Figure 5: with 4 of its 7 routed experts DeepSeekMoE is as good as GShard, which activates twice that.

  python -m launch.sweep --sweep=experiments/studies/fewer_active.py

The trained DeepSeekMoE evaluated with 3 to 7 routed experts a token; GShard, as it was trained, is the line to compare
with. The paper's numbers (2B, Pile loss, read off the plot but for the ends):

  routed experts   3       4       5       6       7        GShard
  loss             1.956   1.868   1.831   1.814   1.808    1.867

What has to carry over: the loss falls with every expert, by less each time, and meets GShard's before all 7.
"""

from experiments.studies.common import PROXY, Run, Scale

_FEWER = {f'{active} routed': {'experts_per_token': active} for active in range(3, 7)}  # 7 is the run's own loss


def sweep(scale: Scale = PROXY) -> list[Run]:
  return [scale.run('deepseek_moe', evaluations=_FEWER), scale.run('gshard')]
