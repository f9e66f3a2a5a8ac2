"""Table 1: at the same total parameters and compute, DeepSeekMoE has a lower loss than every earlier MoE and Dense.

  python -m launch.sweep --sweep=experiments/studies/table1.py

Dense, Hash Layer, Switch, GShard and DeepSeekMoE as in the paper: Hash and Switch activate as much as Dense (one FFN a
token), GShard and DeepSeekMoE twice that (two FFNs); all four MoEs have 16 FFNs' worth of experts. The paper's numbers
(2B, 100B tokens):

  Pile loss   Dense 2.060   Hash 1.932   Switch 1.881   GShard 1.867   DeepSeekMoE 1.808

What has to carry over is the order, Dense > Hash > Switch > GShard > DeepSeekMoE, by more than the seeds differ.
"""

import itertools

from experiments.studies.analysis import Analysis, Entry, Results, against, of_losses
from experiments.studies.common import PROXY, Run, Scale


def sweep(scale: Scale = PROXY) -> list[Run]:
  return [scale.run(variant) for variant in ('dense', 'hash', 'switch', 'gshard', 'deepseek_moe')]


_ENTRIES = (
  Entry('Dense', 'dense', 2.060),
  Entry('Hash Layer', 'hash', 1.932),
  Entry('Switch', 'switch', 1.881),
  Entry('GShard', 'gshard', 1.867),
  Entry('DeepSeekMoE', 'deepseek_moe', 1.808),
)


def analyse(results: Results) -> Analysis:
  """Each model against the one before it."""
  comparisons = tuple(against(results, later, earlier, below=0.0) for earlier, later in itertools.pairwise(_ENTRIES))
  return of_losses(
    results,
    _ENTRIES,
    comparisons,
    'The paper, Table 1 (2B)',
    'The ten downstream tasks of Table 1, and whether the order stays the same after 100B tokens: routing that is '
    'learned may need more tokens to pay than a fixed hash does.',
  )
