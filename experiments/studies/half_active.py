"""Figure 6: a DeepSeekMoE trained with half the activated experts.

  python -m launch.sweep --sweep=experiments/studies/half_active.py

1 + 3 of 63 experts of a quarter size, trained so from scratch, take as much compute as one FFN,
half of GShard's (2 of 16). The paper shows six downstream tasks instead of losses: on all of them
this model is ahead of GShard, at the same total parameters. What has to carry over: its loss is
below GShard's. Beside the claim: its loss is above that of the DeepSeekMoE with 1 + 7.
"""

from experiments.studies.analysis import Analysis, Entry, Results, beside, of_losses
from experiments.studies.common import EARLIER_SEEDS, PROXY, Run, Scale
from experiments.studies.intervals import difference
from experiments.studies.verdicts import Comparison, Role

SCALE, SEEDS = 'long', EARLIER_SEEDS | {'long': 5}
SOURCE = 'Figure 6'
CLAIM = 'A DeepSeekMoE trained with half the activated experts still beats GShard.'


def sweep(scale: Scale = PROXY) -> list[Run]:
  return [scale.run(variant) for variant in ('deepseek_moe_half', 'gshard', 'deepseek_moe')]


_ENTRIES = (
  Entry('GShard', 'gshard', 1.867),
  Entry('DeepSeekMoE, half', 'deepseek_moe_half'),
  Entry('DeepSeekMoE', 'deepseek_moe', 1.808),
)


def analyse(results: Results) -> Analysis:
  """The half-activated model against GShard, and against the whole one."""
  gshard, half, whole = (results.loss(entry.run) for entry in _ENTRIES)
  comparisons = (
    Comparison(
      'half activated − GShard',
      difference(half, gshard),
      below=0.0,
      words=beside('DeepSeekMoE with half of its experts', 'GShard'),
    ),
    Comparison(
      'half activated − DeepSeekMoE', difference(half, whole), above=0.0, role=Role.BESIDE
    ),
  )
  return of_losses(
    results,
    _ENTRIES,
    comparisons,
    'The six downstream tasks that Figure 6 draws; the paper gives no loss of the half-activated '
    'model. Here that model has the learning rate found for the whole one.',
  )
