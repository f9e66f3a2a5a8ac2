"""Table 1: DeepSeekMoE beside GShard, Switch, Hash Layer and Dense.

  python -m launch.sweep --sweep=experiments/studies/table1.py

Dense, Hash Layer, Switch, GShard and DeepSeekMoE as in the paper: Hash and Switch activate as much
as Dense (one FFN a token), GShard and DeepSeekMoE twice that (two FFNs); all four MoEs have 16
FFNs' worth of experts. The paper's numbers (2B, 100B tokens):

  Pile loss   Dense 2.060   Hash 1.932   Switch 1.881   GShard 1.867   DeepSeekMoE 1.808

What has to carry over: DeepSeekMoE's loss is below that of each of the others. Beside the claim:
their losses are in the order Dense > Hash > Switch > GShard. GShard's router is smaller, so that it
activates a little less than DeepSeekMoE, by less than 3% of the compute.
"""

import itertools

from experiments.studies.analysis import Analysis, Entry, Results, against, of_losses
from experiments.studies.common import EARLIER_SEEDS, PROXY, Run, Scale
from experiments.studies.verdicts import Role

SCALE, SEEDS = 'long', EARLIER_SEEDS | {'long': 5}
SOURCE = 'Table 1'
CLAIM = (
  'DeepSeekMoE has a lower loss than GShard at the same parameters and compute, and than '
  'Switch, Hash Layer and Dense, which take a token through one FFN where it takes two.'
)


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
  """DeepSeekMoE against each of the others, and these in their order."""
  *others, deepseek_moe = _ENTRIES
  comparisons = (
    *(against(results, deepseek_moe, other, below=0.0) for other in reversed(others)),
    *(
      against(results, later, earlier, below=0.0, role=Role.BESIDE)
      for earlier, later in itertools.pairwise(others)
    ),
  )
  return of_losses(
    results,
    _ENTRIES,
    comparisons,
    'The ten downstream tasks of Table 1, and whether the order stays the same after 100B tokens: '
    'learned routing may need more tokens to pay off than a fixed hash does. Learned top-1 '
    'routing is behind at this scale, here and in the first step of Figure 3. DeepSeekMoE takes '
    'less than 3% more compute than GShard, since its router is larger (column training FLOPs).',
  )
