"""Section 4.5: what the shared expert knows, no routed expert can stand in for.

  python -m launch.sweep --sweep=experiments/studies/shared_off.py

On the trained DeepSeekMoE the shared expert is disabled and one more routed expert activated, at the same compute. The
paper's numbers (2B, Pile loss): 1.808 → 2.414. What has to carry over: a rise far beyond the differences of Table 1.
"""

from experiments.studies.common import PROXY, Run, Scale

# 7 routed experts a token when trained, 8 without the shared one.
_OFF = {'shared off, 8 routed': {'without_shared': True, 'experts_per_token': 8}}


def sweep(scale: Scale = PROXY) -> list[Run]:
  return [scale.run('deepseek_moe', evaluations=_OFF)]
