"""Section 3.3: without a balance loss routing collapses; a small one prevents it, and a large one costs loss.

  python -m launch.sweep --sweep=experiments/studies/balance.py

DeepSeekMoE with α1 (expert-level, Eq. 12) of 0, 0.001, 0.01, 0.1, and with α2 = 0.05 (device-level, Eq. 15) over 7
groups of 9 experts, alone and beside α1 = 0.001. The paper gives no numbers for this, but what it chose: α1 = 0.01 at
2B, 0.001 at 16B, and at 145B α1 = 0.003 with α2 = 0.05 over 4 groups: small where only collapse is to be prevented,
larger across devices, whose load is what compute waits for. Measured: MaxVio (the busiest expert's load over the mean),
experts without any token, the groups' load on held-out text, held-out loss.
"""

from experiments.studies.common import PROXY, Run, Scale

_GROUPS = {'moe.device_balance_loss': 0.05, 'moe.device_groups': 7}


def sweep(scale: Scale = PROXY) -> list[Run]:
  def run(name, alpha1, rest=None):
    return scale.run('deepseek_moe', name, {'moe.expert_balance_loss': alpha1, **(rest or {})})

  return [
    run('alpha1_0', 0.0),
    run('alpha1_0.001', 0.001),
    run('alpha1_0.01', 0.01),
    run('alpha1_0.1', 0.1),
    run('alpha1_0_alpha2_0.05', 0.0, _GROUPS),
    run('alpha1_0.001_alpha2_0.05', 0.001, _GROUPS),
  ]
