"""Beyond the paper: affinities, gates and limits that routers have had since.

  python -m launch.sweep --sweep=experiments/studies/routers.py

DeepSeekMoE, and the same with one change each (docs/routing.md): gates that sum to 1, which for
softmax means a softmax after selection (Mixtral); sigmoid affinities, whose gates sum to 1 and are
then multiplied by 2.5 (DeepSeek-V3, arXiv 2412.19437); and experts of at most 3 of 7 groups a token
(DeepSeek-V2, arXiv 2405.04434, which found 3 or more devices about as good as no limit). Balance
losses, learning rate and everything else stay. What is claimed: none of them costs more than 0.02
of loss.
"""

from experiments.studies.analysis import Analysis, Entry, Results, against, of_losses
from experiments.studies.common import LONG, Run, Scale, only_long
from experiments.studies.verdicts import ABOUT

SCALE, SEEDS = 'long', 5
CLAIM = (
  'Gates that sum to 1, sigmoid affinities as in DeepSeek-V3, and at most 3 of 7 groups of experts '
  'a token cost almost no loss.'
)
_CHANGES = {
  'normalised': {'moe.normalize_gates': True},
  'sigmoid': {'moe.router': 'sigmoid', 'moe.normalize_gates': True, 'moe.gate_scale': 2.5},
  'limited': {'moe.device_groups': 7, 'moe.device_limit': 3},
}
_PLAIN = Entry('DeepSeekMoE', 'deepseek_moe')
_OTHERS = (
  Entry('gates that sum to 1', 'normalised'),
  Entry('sigmoid, gates that sum to 2.5', 'sigmoid'),
  Entry('3 of 7 groups', 'limited'),
)


def sweep(scale: Scale = LONG) -> list[Run]:
  only_long(scale, 'routers')
  changed = [scale.run('deepseek_moe', name, change) for name, change in _CHANGES.items()]
  return [scale.run('deepseek_moe'), *changed]


def analyse(results: Results) -> Analysis:
  """Losses; each change against none."""
  return of_losses(
    results,
    (_PLAIN, *_OTHERS),
    tuple(against(results, each, _PLAIN, below=ABOUT) for each in _OTHERS),
    'How many devices a token is sent to, and what that saves; other balance losses and learning '
    'rates for each; several changes at once, as DeepSeek-V3 has them, with a bias in place of the '
    'balance loss.',
  )
