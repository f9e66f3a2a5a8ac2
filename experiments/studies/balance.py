"""Section 3.3: the balance losses and what they cost.

  python -m launch.sweep --sweep=experiments/studies/balance.py

DeepSeekMoE with α1 (expert-level, Eq. 12) of 0, 0.001, 0.01, 0.1, and with α2 = 0.05 (device-level,
Eq. 15) over 7 groups of 9 experts, alone and beside α1 = 0.001. The paper gives no results for
this, only what it chose: α1 = 0.01 at 2B, 0.001 at 16B, and at 145B α1 = 0.003 with α2 = 0.05 over
4 groups. The weight is small where it only has to prevent collapse, and larger across devices,
where compute waits for the busiest one. Measured: MaxVio (the busiest expert's load ÷ mean − 1) and
idle experts (without any token of a batch), both over the last tenth of training; the groups' load
and the loss on held-out text. What has to hold: without a balance loss MaxVio is higher than with
α1 = 0.001, which costs no more than 0.02 of loss; with α1 = 0.1 the loss is above that of 0.001.
Beside the claim: without a balance loss more experts are idle (with α1 = 0.01 hardly any is in a
batch of 4096 tokens); α1 = 0.01, which all other studies take, evens the load and costs no more
than 0.02 either; α2 evens the groups, and evens the experts less than α1 does.
"""

import math
from collections.abc import Callable, Mapping
from statistics import mean

from experiments.studies.analysis import (
  HELD_OUT_LOSS,
  LOSS_AXIS,
  Analysis,
  Results,
  beside,
  differences,
  dots,
  shown,
  sided,
  sizes,
)
from experiments.studies.common import EARLIER_SEEDS, PROXY, Run, Scale
from experiments.studies.intervals import difference
from experiments.studies.verdicts import ABOUT, BOUND_MAY_BE_WIDE, Comparison, Role

SCALE, SEEDS = 'long', EARLIER_SEEDS | {'long': 5}
SOURCE = 'Section 3.3'
CLAIM = (
  'Without a balance loss the load is less even; α1 = 0.001 costs almost no loss, α1 = 0.1 some.'
)
_GROUPS = {'moe.device_balance_weight': 0.05, 'moe.device_groups': 7}


def sweep(scale: Scale = PROXY) -> list[Run]:
  def run(name, alpha1, rest=None):
    return scale.run('deepseek_moe', name, {'moe.expert_balance_weight': alpha1, **(rest or {})})

  return [
    run('alpha1_0', 0.0),
    run('alpha1_0.001', 0.001),
    run('alpha1_0.01', 0.01),
    run('alpha1_0.1', 0.1),
    run('alpha1_0_alpha2_0.05', 0.0, _GROUPS),
    run('alpha1_0.001_alpha2_0.05', 0.001, _GROUPS),
  ]


_LABELS = {
  'alpha1_0': 'none',
  'alpha1_0.001': 'α1 0.001',
  'alpha1_0.01': 'α1 0.01',
  'alpha1_0.1': 'α1 0.1',
  'alpha1_0_alpha2_0.05': 'α2 0.05',
  'alpha1_0.001_alpha2_0.05': 'α1 0.001 α2 0.05',
}
_COLUMNS = (
  'balance loss',
  'activated',
  'seeds',
  HELD_OUT_LOSS,
  '95% interval',
  'MaxVio',
  'idle experts',
  'group load',
)


def analyse(results: Results) -> Analysis:
  """Loss, MaxVio, idle experts and the groups' load for every setting."""
  loss = {
    run: _measured(results, run, lambda line: line['final']['total']['loss']) for run in _LABELS
  }
  max_vio = {
    run: _measured(results, run, lambda line: line['max_vio']['last_tenth']) for run in _LABELS
  }
  idle = {run: _measured(results, run, lambda line: line['idle_experts']) for run in _LABELS}
  group = {run: _measured(results, run, _group_load) for run in _LABELS}
  rows = tuple(
    (
      label,
      sizes(results, run)[1],
      *shown(loss[run]),
      *(
        shown(measure[run], digits)[1] for measure, digits in ((max_vio, 3), (idle, 1), (group, 3))
      ),
    )
    for run, label in _LABELS.items()
  )
  comparisons = _comparisons(loss, max_vio, idle, group)

  def panel(title, measure, axis, from_zero=True, digits=3):
    values = {label: measure[run] for run, label in _LABELS.items()}
    return dots(title, axis, values, from_zero=from_zero, digits=digits)

  return Analysis(
    _COLUMNS,
    rows,
    comparisons,
    (
      panel(
        'MaxVio, last tenth of training', max_vio, "busiest expert's load ÷ mean − 1", digits=2
      ),
      panel(
        'Experts without a token, last tenth of training', idle, 'experts, all layers', digits=1
      ),
      panel('Busiest group of 9 experts, held-out text', group, "group's load ÷ mean", digits=2),
      panel('Loss', loss, LOSS_AXIS, from_zero=False),
      differences('Paired differences of loss', comparisons),
    ),
    f'{BOUND_MAY_BE_WIDE} The paper gives no numbers to compare these with. The time that '
    'imbalance costs across devices is not measured, and a routing that has not collapsed after '
    'few tokens may do so later. An expert is idle if no token of a batch chooses it; evenly '
    'spread, each would have hundreds. The loss balances each sequence, which has 128 tokens here '
    'and 2048 in the paper: at the same α1 that is a tighter constraint here.',
  )


def _comparisons(loss, max_vio, idle, group):
  """The comparisons. Every argument is a measure, as {run: values by seed}."""
  without, small, usual, large = 'alpha1_0', 'alpha1_0.001', 'alpha1_0.01', 'alpha1_0.1'
  groups, both = 'alpha1_0_alpha2_0.05', 'alpha1_0.001_alpha2_0.05'

  def also(what, measure, first, second, digits=3, **expected):
    label = f'{what}: {_LABELS[first]} − {_LABELS[second]}'
    values = difference(measure[first], measure[second])
    return Comparison(label, values, digits=digits, role=Role.BESIDE, unit=what, **expected)

  return (
    Comparison(
      'MaxVio: none − α1 0.001',
      difference(max_vio[without], max_vio[small]),
      above=0.0,
      digits=3,
      unit='MaxVio',
      words=sided('without a loss MaxVio is', after=' than at α1 0.001'),
    ),
    Comparison(
      'loss: α1 0.001 − none',
      difference(loss[small], loss[without]),
      below=ABOUT,
      words=beside('the loss of α1 0.001', 'that of none'),
    ),
    Comparison(
      'loss: α1 0.1 − α1 0.001',
      difference(loss[large], loss[small]),
      above=0.0,
      words=beside('the loss of α1 0.1', 'that of α1 0.001'),
    ),
    also('idle experts', idle, without, small, digits=1, above=0.0),
    also('MaxVio', max_vio, without, usual, above=0.0),
    also('loss', loss, usual, without, digits=4, below=ABOUT),
    also('group load', group, groups, without, below=0.0),
    also('group load', group, both, small, below=0.0),
    also('MaxVio', max_vio, groups, small, above=0.0),
    also('loss', loss, groups, without, digits=4, below=ABOUT),
    also('loss', loss, both, small, digits=4, below=ABOUT),
  )


def _measured(
  results: Results, run: str, measure: Callable[[Mapping], float | None]
) -> dict[int, float]:
  """`measure` by seed. A diverged run is an outcome here, worse than any number: infinity."""
  diverged = {seed for seed, loss in results.loss(run).items() if math.isnan(loss)}
  return {
    seed: math.inf if seed in diverged else value
    for seed, value in results.values(run, measure).items()
  }


def _group_load(line: Mapping) -> float | None:
  """The busiest group's load over the mean load on held-out text, averaged over layers."""
  layers = []
  for load in line['expert_load'] or ():
    if None in load:
      return None
    size = len(load) // _GROUPS['moe.device_groups']
    layers.append(max(mean(load[start : start + size]) for start in range(0, len(load), size)))
  return mean(layers) if layers else None
