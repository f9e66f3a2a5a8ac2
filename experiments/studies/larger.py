"""Tables 2, 8 and 9: DeepSeekMoE matches a GShard of 1.5 times its experts, and nears a dense model of all of them.

  python -m launch.sweep --sweep=experiments/studies/larger.py

GShard×1.2 and ×1.5 have experts 1.2 and 1.5 times as wide, in parameters and compute; Dense×4 and ×16 have 4 and 16
FFNs a layer that every token passes: ×16, with the parameters of the MoE all activated, is its upper bound. The paper's
numbers (2B, Pile loss):

  GShard 1.867   GShard×1.2 1.824   GShard×1.5 1.808   Dense×4 1.908   Dense×16 1.806   DeepSeekMoE 1.808

What has to carry over: DeepSeekMoE no worse than GShard×1.2 and about GShard×1.5, below Dense×4, near Dense×16.
"""

from experiments.studies.analysis import Analysis, Entry, Results, against, of_losses
from experiments.studies.common import PROXY, Run, Scale
from experiments.studies.intervals import ABOUT


def sweep(scale: Scale = PROXY) -> list[Run]:
  names = ('gshard', 'gshard_x1_2', 'gshard_x1_5', 'dense_x4', 'dense_x16', 'deepseek_moe')
  return [scale.run(variant) for variant in names]


_DEEPSEEK_MOE = Entry('DeepSeekMoE', 'deepseek_moe', 1.808)
_ENTRIES = (
  Entry('GShard', 'gshard', 1.867),
  Entry('GShard ×1.2', 'gshard_x1_2', 1.824),
  Entry('GShard ×1.5', 'gshard_x1_5', 1.808),
  Entry('Dense ×4', 'dense_x4', 1.908),
  Entry('Dense ×16', 'dense_x16', 1.806),
  _DEEPSEEK_MOE,
)
# DeepSeekMoE minus each: below 0 where it is ahead in the paper, not above ABOUT where it is level.
_BOUNDS = {'GShard': 0.0, 'GShard ×1.2': 0.0, 'GShard ×1.5': ABOUT, 'Dense ×4': 0.0, 'Dense ×16': ABOUT}


def analyse(results: Results) -> Analysis:
  """DeepSeekMoE against each of the others."""
  comparisons = tuple(
    against(results, _DEEPSEEK_MOE, entry, below=_BOUNDS[entry.label])
    for entry in _ENTRIES
    if entry is not _DEEPSEEK_MOE
  )
  return of_losses(
    results,
    _ENTRIES,
    comparisons,
    'The paper, Tables 2, 8 and 9 (2B)',
    'The same comparison at 13B (Table 10), where DeepSeekMoE is ahead of GShard×1.5, and on downstream tasks. The '
    'upper bound Dense×16 is not trained to its end either: on few tokens it may be far from what it could reach.',
  )
