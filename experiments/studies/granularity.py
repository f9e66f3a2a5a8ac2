"""Figure 3: from GShard to DeepSeekMoE in three steps, at equal total and activated parameters.

  python -m launch.sweep --sweep=experiments/studies/granularity.py

The steps lead from GShard (0 shared + 2 of 16) over one isolated shared expert (1 + 1 of 15) to
experts split in two (1 + 3 of 31) and in four (1 + 7 of 63, DeepSeekMoE). The paper shows six
downstream tasks instead of losses, relative to the best of each: performance rises with every step,
mostly monotonously (0+2/16 < 1+1/15 < 1+3/31 < 1+7/63). It gives the Pile loss of the two ends,
GShard 1.867 and DeepSeekMoE 1.808. What has to carry over: the loss falls in this order, with every
step, which is more than "mostly". Beside the claim: it falls from end to end.

What was tried for 1 + 1 of 15 is a study of its own, coarse_shared.py.
"""

import itertools

from experiments.studies.analysis import Analysis, Entry, Results, against, of_losses
from experiments.studies.common import EARLIER_SEEDS, PROXY, Run, Scale
from experiments.studies.verdicts import Role

SCALE, SEEDS = 'long', EARLIER_SEEDS | {'long': 5}
SOURCE = 'Figure 3'
CLAIM = (
  'At equal total and activated parameters, finer experts and a shared one each lower the loss.'
)


def sweep(scale: Scale = PROXY) -> list[Run]:
  names = ('granularity_0_2_16', 'granularity_1_1_15', 'granularity_1_3_31', 'granularity_1_7_63')
  return [scale.run(variant) for variant in names]


_ENTRIES = (
  Entry('0+2/16', 'granularity_0_2_16', 1.867),
  Entry('1+1/15', 'granularity_1_1_15'),
  Entry('1+3/31', 'granularity_1_3_31'),
  Entry('1+7/63', 'granularity_1_7_63', 1.808),
)


def analyse(results: Results) -> Analysis:
  """Each step of Figure 3 against the one before it."""
  steps = [
    against(results, later, earlier, below=0.0) for earlier, later in itertools.pairwise(_ENTRIES)
  ]
  ends = against(results, _ENTRIES[-1], _ENTRIES[0], below=0.0, role=Role.BESIDE)
  return of_losses(
    results,
    _ENTRIES,
    [*steps, ends],
    'The six downstream tasks that Figure 3 draws: models of this size solve none of them above '
    'chance, and loss stands in for them. Small experts can specialise only in what the text '
    'holds, and few tokens hold less of it. Learned top-1 routing, as in 1+1/15, is behind at this '
    'scale in Table 1, too (Switch). All four models have the learning rate found for 0+2/16 and '
    '1+7/63. What was tried for 1+1/15 is in the study coarse_shared.',
  )
