"""Tables 2, 8 and 9: DeepSeekMoE beside larger GShards and denser models.

  python -m launch.sweep --sweep=experiments/studies/larger.py

GShard×1.2 and ×1.5 have experts 1.2 and 1.5 times as wide, in parameters and compute; Dense×4 and
×16 have 4 and 16 FFNs a layer that every token passes. Dense×16 has the parameters of the MoE, all
activated, and is its upper bound. The paper's numbers (2B, Pile loss):

  GShard   GShard×1.2   GShard×1.5   Dense×4   Dense×16   DeepSeekMoE
  1.867    1.824        1.808        1.908     1.806      1.808

What has to carry over: the loss of DeepSeekMoE is above neither GShard×1.5's nor Dense×16's by more
than 0.02. This presupposes that these two, which have or activate more parameters than GShard, are
better than it. Beside the claim: the loss of DeepSeekMoE is below those of GShard,
GShard×1.2 and Dense×4.
"""

from experiments.studies.analysis import Analysis, Entry, Results, against, of_losses
from experiments.studies.common import EARLIER_SEEDS, PROXY, Run, Scale
from experiments.studies.verdicts import ABOUT, BOUND_MAY_BE_WIDE, Role

SCALE, SEEDS = 'long', EARLIER_SEEDS | {'long': 5}
SOURCE = 'Tables 2, 8 and 9'
CLAIM = (
  "DeepSeekMoE is at least about as good as GShard×1.5 and as Dense×16, the MoE's upper bound."
)


def sweep(scale: Scale = PROXY) -> list[Run]:
  names = ('gshard', 'gshard_x1_2', 'gshard_x1_5', 'dense_x4', 'dense_x16', 'deepseek_moe')
  return [scale.run(variant) for variant in names]


_DEEPSEEK_MOE = Entry('DeepSeekMoE', 'deepseek_moe', 1.808)
_GSHARD = Entry('GShard', 'gshard', 1.867)
_ENTRIES = (
  _GSHARD,
  Entry('GShard×1.2', 'gshard_x1_2', 1.824),
  Entry('GShard×1.5', 'gshard_x1_5', 1.808),
  Entry('Dense×4', 'dense_x4', 1.908),
  Entry('Dense×16', 'dense_x16', 1.806),
  _DEEPSEEK_MOE,
)
# These are level with DeepSeekMoE in the paper, which is the claim. It is ahead of the others.
_LEVEL = ('GShard×1.5', 'Dense×16')


def analyse(results: Results) -> Analysis:
  """DeepSeekMoE against each of the others, and the two that it has to be
  level with against GShard.
  """
  comparisons = [
    against(
      results,
      _DEEPSEEK_MOE,
      entry,
      below=ABOUT if level else 0.0,
      role=Role.CLAIM if level else Role.BESIDE,
    )
    for entry in _ENTRIES
    if entry is not _DEEPSEEK_MOE
    for level in [entry.label in _LEVEL]
  ]
  # Being as good as a model that is no better than GShard would say nothing.
  comparisons += [
    against(results, larger, _GSHARD, below=0.0, role=Role.PREMISE)
    for larger in _ENTRIES
    if larger.label in _LEVEL
  ]
  return of_losses(
    results,
    _ENTRIES,
    comparisons,
    'The same comparison at 13B (Table 10), where DeepSeekMoE is ahead of GShard×1.5, and on '
    f'downstream tasks. {BOUND_MAY_BE_WIDE} Dense×16 may be far from what it could reach on more '
    'tokens, and being ahead of such a bound says nothing about the claim. So the verdict requires '
    'that Dense×16 and GShard×1.5 are better than GShard. In the pilot, too, Dense×16 at the best '
    'of its five learning rates is behind GShard at its best one. The width of GShard×1.2 is '
    "rounded to a multiple of 8. GShard×1.2 and GShard×1.5 have GShard's learning rate.",
  )
