"""Beyond the paper: experts of two widths in one layer.

  python -m launch.sweep --sweep=experiments/studies/unequal_experts.py

DeepSeekMoE with 63 routed experts of width 32, and with 42 of width 16 and 21 of width 64
(`moe.wide_experts`, docs/routing.md). Both have the same parameters, 7 routed experts a token, and
a shared expert of the same width. What is claimed (arXiv 2408.10681 claims it for 8 experts of
eight widths): the loss is lower with two widths. Presupposed: the width that tokens go through is
larger by no more than a twentieth of that of 7 equal experts (what GShard×1.2 gains over GShard,
larger.py, makes that worth about 0.005 of loss). Beside the claim: domains differ in the width that
they go through.
"""

from experiments.studies.analysis import (
  HELD_OUT_LOSS,
  Analysis,
  Entry,
  Results,
  against,
  beside_reading,
  differences,
  dots,
  sided,
  spread,
)
from experiments.studies.common import DOMAINS, LONG, Run, Scale, only_long
from experiments.studies.verdicts import Comparison, Role

SCALE, SEEDS = 'long', 5
CLAIM = (
  'Experts of two widths give a lower loss than as many of one width, at the same parameters and '
  'nearly the same compute.'
)
_WIDTH, _CHOSEN = 32, 7
# Shared experts have width d_expert, too: two side by side make one of _WIDTH.
_UNEQUAL = {
  'moe.d_expert': _WIDTH // 2,
  'moe.num_shared_experts': 2,
  'moe.wide_experts': 21,
  'moe.wide_factor': 4,
}


def sweep(scale: Scale = LONG) -> list[Run]:
  only_long(scale, 'unequal_experts')
  return [scale.run('deepseek_moe'), scale.run('deepseek_moe', 'unequal', _UNEQUAL)]


_EQUAL, _TWO_WIDTHS = (
  Entry('one width, 63 of 32', 'deepseek_moe'),
  Entry('two widths, 42 of 16 and 21 of 64', 'unequal'),
)
_COLUMNS = (
  *('routed experts', 'parameters', 'seeds', HELD_OUT_LOSS, '95% interval'),
  *('mean width', *DOMAINS),
)


def analyse(results: Results) -> Analysis:
  """Losses, and the routed width that the tokens of each domain go through."""
  equal = _WIDTH * _CHOSEN
  rows, of_all, through = beside_reading(
    results, _EQUAL, _TWO_WIDTHS, 'routed_width', equal, DOMAINS, digits=0
  )
  width = lambda what, values, **expected: Comparison(
    what, values, digits=1, unit='hidden width', **expected
  )
  comparisons = (
    against(
      results,
      _TWO_WIDTHS,
      _EQUAL,
      below=0.0,
      words=sided('with two widths the loss is', after=' than with one'),
    ),
    width(
      f'mean routed width − {equal}',
      {seed: value - equal for seed, value in of_all.items()},
      below=equal / 20,
      role=Role.PREMISE,
      words=sided(
        'in the mean a token goes through a width', ('more', 'less'), f' than the {equal} of one'
      ),
    ),
    width(
      'routed width, most − least, of domains',
      spread(through),
      above=equal / 100,
      role=Role.BESIDE,
    ),
  )
  return Analysis(
    _COLUMNS,
    rows,
    comparisons,
    (
      dots(
        'Routed width that a token goes through', 'mean over layers, held-out', through, digits=0
      ),
      differences('Paired difference', comparisons),
    ),
    'Other widths, and a loss that prefers narrow experts, which the source has. Wide experts are '
    'balanced by how often they are chosen, like narrow ones.',
  )
