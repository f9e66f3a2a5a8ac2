"""Beyond the paper: as many experts a token as it needs.

  python -m launch.sweep --sweep=experiments/studies/adaptive_k.py

DeepSeekMoE trained with 7 routed experts for every token, and with up to 14: of its 14 best experts
a token takes the fewest that hold a share of their affinities, `moe.gate_mass` (docs/routing.md).
What is claimed (arXiv 2403.07652 claims it for models of two experts a token): at the same mean
number of experts the loss is lower. Presupposed: the mean number, over all held-out text, is within
0.5 of 7. Beside the claim: domains differ in how many experts they take. The share was chosen
before the runs by that mean alone: at 0.6 it is 6.1 after all tokens (seed 0; this command with
--runs=adaptive --seeds=1 --config.moe.gate_mass=0.6 --results=runs/mass); after a quarter of the
tokens it is 4.4 at 0.4, and 6.4 at 0.55.
"""

from experiments.studies.analysis import (
  HELD_OUT_LOSS,
  NONE,
  Analysis,
  Entry,
  Results,
  against,
  beside_reading,
  differences,
  dots,
  in_flops,
  sided,
  spread,
)
from experiments.studies.common import DOMAINS, LONG, Run, Scale
from experiments.studies.intervals import Values, interval
from experiments.studies.verdicts import Comparison, Role

SCALE, SEEDS = 'long', 5
CLAIM = 'With the same mean number of experts, letting it vary from token to token lowers the loss.'
_MOST, _MEAN = 14, 7
_MASS = 0.66
_ADAPTIVE = {'moe.experts_per_token': _MOST, 'moe.gate_mass': _MASS}


def sweep(scale: Scale = LONG) -> list[Run]:
  return [scale.run('deepseek_moe'), scale.run('deepseek_moe', 'adaptive', _ADAPTIVE)]


_FIXED_K, _ADAPTIVE_K = Entry('7 for every token', 'deepseek_moe'), Entry('adaptive', 'adaptive')
_COLUMNS = (
  *('model', 'parameters', 'seeds', HELD_OUT_LOSS, '95% interval', 'mean K', *DOMAINS),
  'training FLOPs at the mean K',
)


def analyse(results: Results) -> Analysis:
  """Losses, and how many experts the tokens of each domain take."""
  rows, of_all, taken = beside_reading(
    results, _FIXED_K, _ADAPTIVE_K, 'experts_taken', _MEAN, DOMAINS, digits=2
  )
  rows = tuple((*row, flops) for row, flops in zip(rows, _flops(results, of_all), strict=True))
  experts = lambda what, values, **expected: Comparison(
    what, values, digits=2, unit='experts', **expected
  )
  comparisons = (
    against(
      results,
      _ADAPTIVE_K,
      _FIXED_K,
      below=0.0,
      words=sided('with a varying number the loss is', after=' than with 7 for every token'),
    ),
    experts(
      'mean K − 7',
      {seed: value - _MEAN for seed, value in of_all.items()},
      above=-0.5,
      below=0.5,
      role=Role.PREMISE,
      words=sided('in the mean a token takes', ('more', 'fewer'), ' than 7 experts'),
    ),
    experts('K, most − least, of domains', spread(taken), above=0.1, role=Role.BESIDE),
  )
  return Analysis(
    _COLUMNS,
    rows,
    comparisons,
    (
      dots('Experts that a token takes', 'mean over layers, held-out text', taken, digits=2),
      differences('Paired difference', comparisons),
    ),
    'Other shares and limits; how much time fewer experts save.',
  )


def _flops(results: Results, taken: Values) -> tuple[str, str]:
  """The training FLOPs of both models, the second's at the mean number of experts that its tokens
  take on held-out text. Accounting has them at the limit; each expert less costs the same.
  """
  fixed, at_most = (results.of(each.run, 'train_flops') for each in (_FIXED_K, _ADAPTIVE_K))
  found = interval(taken)
  if fixed is None or at_most is None or found is None:
    return in_flops(fixed), NONE
  of_one = (at_most - fixed) / (_MOST - _MEAN)
  return in_flops(fixed), in_flops(fixed + of_one * (found.mean - _MEAN))
