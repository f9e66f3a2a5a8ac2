"""Section 4.4: how many of 64 fine experts are shared.

  python -m launch.sweep --sweep=experiments/studies/shared_ratio.py

1 + 7 of 63, 2 + 6 of 62 and 4 + 4 of 60 experts, equal in total and activated parameters.
The paper's numbers (2B, Pile loss):

  1 shared 1.808   2 shared 1.806   4 shared 1.811

What has to carry over: the differences are small beside that of GShard and DeepSeekMoE, all within
0.02. (The 16B keeps shared : active routed at 1 : 3.)
"""

import itertools

from experiments.studies.analysis import Analysis, Entry, Results, against, of_losses
from experiments.studies.common import EARLIER_SEEDS, PROXY, Run, Scale
from experiments.studies.verdicts import ABOUT, BOUND_MAY_BE_WIDE

SCALE, SEEDS = 'long', EARLIER_SEEDS | {'long': 5}
SOURCE = 'Section 4.4'
CLAIM = 'How many of 64 fine experts are shared, 1, 2 or 4, matters little.'


def sweep(scale: Scale = PROXY) -> list[Run]:
  return [scale.run(variant) for variant in ('shared_1', 'shared_2', 'shared_4')]


_ENTRIES = (
  Entry('1+7/63', 'shared_1', 1.808),
  Entry('2+6/62', 'shared_2', 1.806),
  Entry('4+4/60', 'shared_4', 1.811),
)


def analyse(results: Results) -> Analysis:
  """Every pair of the three against each other."""
  comparisons = tuple(
    against(results, second, first, above=-ABOUT, below=ABOUT)
    for first, second in itertools.combinations(_ENTRIES, 2)
  )
  return of_losses(
    results,
    _ENTRIES,
    comparisons,
    'Differences of a few thousandths, as the paper has them: with the spread of these runs five '
    'seeds can hardly show that two models are within 0.02 of each other, even if they are '
    f'(column detectable). {BOUND_MAY_BE_WIDE} The models with 2 and 4 shared experts have the '
    'learning rate found for 1.',
  )
