"""What the comparisons of the studies are about, computed from the committed lines by code that
shares nothing with experiments/: json, NumPy and SciPy.
"""

import json
import re
from pathlib import Path

import numpy as np

from tests.launch.runs.programs import ROOT

RESULTS = ROOT / 'experiments' / 'results'
# For each study: a name in its table of differences → the run, or (run, evaluation), it stands for.
_RUN = {
  'Dense': 'dense',
  'Hash Layer': 'hash',
  'Switch': 'switch',
  'GShard': 'gshard',
  'DeepSeekMoE': 'deepseek_moe',
  'GShard×1.2': 'gshard_x1_2',
  'GShard×1.5': 'gshard_x1_5',
  'Dense×4': 'dense_x4',
  'Dense×16': 'dense_x16',
  '0+2/16': 'granularity_0_2_16',
  '1+1/15': 'granularity_1_1_15',
  '1+3/31': 'granularity_1_3_31',
  '1+7/63': 'granularity_1_7_63',
  'half activated': 'deepseek_moe_half',
  **{f'{active} routed': ('deepseek_moe', f'{active} routed') for active in range(3, 7)},
  '7 routed': 'deepseek_moe',
  'without the shared expert': ('deepseek_moe', 'shared off, 8 routed'),
  'with it': 'deepseek_moe',
}
_TABLES = {
  **dict.fromkeys(
    ('table1', 'larger', 'granularity', 'half_active', 'fewer_active', 'shared_off'), _RUN
  ),
  'shared_ratio': {'1+7/63': 'shared_1', '2+6/62': 'shared_2', '4+4/60': 'shared_4'},
  'routers': {
    'DeepSeekMoE': 'deepseek_moe',
    'gates that sum to 1': 'normalised',
    'sigmoid, gates that sum to 2.5': 'sigmoid',
    '3 of 7 groups': 'limited',
  },
  'shared_gate': {'gated shared expert': 'gated', 'DeepSeekMoE': 'deepseek_moe'},
  'adaptive_k': {'adaptive': 'adaptive', '7 for every token': 'deepseek_moe'},
  'unequal_experts': {
    'two widths, 42 of 16 and 21 of 64': 'unequal',
    'one width, 63 of 32': 'deepseek_moe',
  },
  'coarse_shared': {
    '0+2/16': 'granularity_0_2_16',
    '1+1/15': 'granularity_1_1_15',
    '1+1/15, bias': 'bias',
    '1+1/15, rate 0.003': 'rate_0.003',
    '1+1/15, rate 0.012': 'rate_0.012',
    '1+1/15, sigmoid': 'sigmoid',
    '1+1/15, gates × 4': 'gates_4',
    '1+1/15, α1 0.001': 'alpha1_0.001',
  },
  'attention_share': {'1 head': 'heads_1', '2 heads': 'deepseek_moe', '3 heads': 'heads_3'},
  'upcycling': {
    'dense, before': 'dense',
    'dense, gone on with': 'dense_on',
    'MoE from scratch': 'scratch',
    'MoE upcycled': 'upcycled',
  },
}


def lines_of(folder: Path) -> list[dict]:
  return [json.loads(line) for line in (folder / 'runs.jsonl').read_text().splitlines()]


def losses_of(lines: list[dict], which: str | tuple[str, str]) -> dict[int, float]:
  """The losses of `which`, a run or (run, evaluation), by seed; NaN where the run diverged."""
  run, evaluation = (which, None) if isinstance(which, str) else which
  scored = lambda line: line['evaluations'][evaluation] if evaluation else line['final']
  number = lambda value: np.nan if value is None else value  # diverged
  return {
    line['seed']: number(scored(line)['total']['loss']) for line in lines if line['run'] == run
  }


def differences(name: str, lines: list[dict], what: str) -> np.ndarray:
  """The numbers that a comparison is about, one a seed: as a rule paired differences."""
  of_study = _OF_STUDIES.get(name)
  values = of_study(lines, what) if of_study else None
  if values is None:
    values = _paired(*(losses_of(lines, _TABLES[name][side]) for side in what.split(' − ')))
  return np.array([values[seed] for seed in sorted(values)])


def _paired(first: dict, second: dict) -> dict:
  return {seed: first[seed] - second[seed] for seed in first.keys() & second.keys()}


def _figure_4(lines, what):
  share = re.fullmatch(r"top (\d)/16 masked: rise − GShard×1.5's", what)[1]
  return _paired(*(_rise(lines, run, f'masked {share}/16') for run in _MASKED))


_MASKED = 'deepseek_moe', 'gshard_x1_5'


def _fewer_active(lines, what):
  falls = re.fullmatch(r'fall to (\d) − fall to (\d)', what)
  loss = lambda active: losses_of(lines, _RUN[f'{active} routed'])
  fall = lambda active: _paired(loss(active), loss(active - 1))
  return _paired(*(fall(int(active)) for active in falls.groups())) if falls else None


def _rise(lines, run, evaluation):
  return _paired(losses_of(lines, (run, evaluation)), losses_of(lines, run))


def _longer(lines, what):
  def at(tokens):
    if 'without the shared expert' in what:
      return _rise(lines, f'deepseek_moe_{tokens}', 'shared off, 8 routed')
    return _paired(*(_rise(lines, f'{run}_{tokens}', 'masked 1/16') for run in _MASKED))

  return at(100) if what.startswith('at 100') else _paired(at(100), at(10))


def _by_seed(lines, run, number):
  return {line['seed']: number(line) for line in lines if line['run'] == run}


def _shared_gate(lines, what):
  if what.startswith('openness'):
    return _spread(lines, 'gated', 'shared_gate')
  if not what.startswith('rise'):
    return None
  gated = [line for line in lines if line['run'] == 'gated']
  openness = {
    domain: np.mean([np.mean(line['readings'][domain]['shared_gate']) for line in gated])
    for domain in gated[0]['readings']
  }

  def rise(line, domain):
    scored = line['evaluations']['shared off']['domains'], line['final']['domains']
    return scored[0][domain]['loss'] - scored[1][domain]['loss']

  ends = max(openness, key=openness.get), min(openness, key=openness.get)
  return {line['seed']: rise(line, ends[0]) - rise(line, ends[1]) for line in gated}


def _adaptive_k(lines, what):
  return _of_readings(lines, what, 'adaptive', 'experts_taken', 7)


def _unequal_experts(lines, what):
  return _of_readings(lines, what, 'unequal', 'routed_width', 224)


def _of_readings(lines, what, run, name, usual):
  if what.startswith('mean '):
    return _by_seed(lines, run, lambda line: np.mean(line['mean_readings'][name]) - usual)
  return _spread(lines, run, name) if 'most − least' in what else None


def _spread(lines, run, name):
  """How far a reading, the mean over layers, is apart between its two farthest domains."""
  return _by_seed(
    lines, run, lambda line: np.ptp([np.mean(each[name]) for each in line['readings'].values()])
  )


def _coarse_shared(lines, what):
  if what != '1+1/15, bias − 1+1/15':
    return None
  unseen = [line for line in lines if line['seed'] > 0]  # seed 0 suggested the claim
  return _paired(losses_of(unseen, 'bias'), losses_of(unseen, 'granularity_1_1_15'))


def _balancing(lines, what):
  kind, _, pair = what.rpartition(': ')
  way, usual = pair.split(' − ')
  model, _, way = way.partition(', ')
  run = {'DeepSeekMoE': 'deepseek_moe', 'GShard': 'gshard'}[model]
  numbers = {'MaxVio': lambda line: line['max_vio']['last_tenth']}
  number = numbers.get(kind, lambda line: line['final']['total']['loss'])
  first, second = (
    _by_seed(lines, f'{run}_{each.replace(" ", "_")}', number) for each in (way, usual)
  )
  return _paired(first, second)


def _attention_share(lines, what):
  probe, _, labels = what.partition(' gains: ')
  if not labels:
    return None

  def gain(label):
    def number(line):
      found = line['measures']['recall']
      return found[f'{probe}_after_other'][0] - found[probe][0]

    return _by_seed(lines, _TABLES['attention_share'][label], number)

  sides = [gain(label) for label in labels.split(' − ')]
  return _paired(*sides) if len(sides) == 2 else sides[0]


def _specialisation(lines, what):
  models = {'DeepSeekMoE': 'deepseek_moe', 'GShard': 'gshard'}
  keys = {'domain': 'domain', "piece's class": 'class', "next piece's class": 'next_class'}
  whole = re.fullmatch(r'(?P<kind>[^:,]+)(, (?P<one>\w+): at 40 − at (\d+)|: (?P<of>.+))', what)

  def measured(run):
    def number(line):
      found = line['measures']['specialisation']
      of = lambda name: np.mean(found[name])
      if whole['kind'] != 'ratio':
        return of(keys[whole['kind']])
      return of('substituted') / of('removed') if of('removed') > 0 else None

    return {
      seed: value for seed, value in _by_seed(lines, run, number).items() if value is not None
    }

  if whole['one']:
    return _paired(*(measured(f'{models[whole["one"]]}_{tokens}') for tokens in (40, whole[4])))
  sides = [measured(f'{models[label]}_40') for label in whole['of'].split(' − ')]
  return _paired(*sides) if len(sides) == 2 else sides[0]


_REPLIES = {
  'loss of replies': lambda found: found['after']['own'],
  'exact replies': lambda found: np.mean(list(found['after']['answers'].values())),
  'rise of the old text’s loss': lambda found: found['after']['start'] - found['before']['start'],
}
_REPLIES['rise of the old skills’ loss'] = _REPLIES['rise of the old text’s loss']


def _tuned(lines, what):
  """Of the studies sft and esft."""
  pair, _, kind = what.partition(': ')
  first, second = pair.split(' − ')
  if first.startswith('DeepSeekMoE'):
    runs = ('deepseek_moe_tuned', {'GShard': 'gshard_tuned'}.get(second, 'dense_x2_tuned'))
  else:
    runs = (first, f'{first.partition(", ")[0]}, {second}')
  return _paired(
    *(_by_seed(lines, run, lambda line: _REPLIES[kind](line['transfer'])) for run in runs)
  )


def _balance_differs(lines, what):
  kind, _, pair = what.partition(': ')
  return _paired(*(_balance(lines, kind, _BALANCE[side]) for side in pair.split(' − ')))


def _scaling(lines, what):
  found = _laws(lines)
  which = next(number for number, begin in enumerate(_OF_LAWS) if what.startswith(begin))
  return {seed: numbers[which] for seed, numbers in found.items()}


_OF_LAWS = (
  "DeepSeekMoE's share of the compute at the best Dense's, by the law",
  'what the law leaves of loss',
  "DeepSeekMoE's share of the compute at the best Dense's loss",
  "DeepSeekMoE's loss − the best Dense's, at equal compute",
)
_OF_STUDIES = {
  'disable_top': _figure_4,
  'fewer_active': _fewer_active,
  'balance': _balance_differs,
  'scaling': _scaling,
  'longer': _longer,
  'shared_gate': _shared_gate,
  'adaptive_k': _adaptive_k,
  'unequal_experts': _unequal_experts,
  'coarse_shared': _coarse_shared,
  'balancing': _balancing,
  'attention_share': _attention_share,
  'specialisation': _specialisation,
  'sft': _tuned,
  'esft': _tuned,
}
_BALANCE = {
  'none': 'alpha1_0',
  'α1 0.001': 'alpha1_0.001',
  'α1 0.01': 'alpha1_0.01',
  'α1 0.1': 'alpha1_0.1',
  'α2 0.05': 'alpha1_0_alpha2_0.05',
  'α1 0.001 α2 0.05': 'alpha1_0.001_alpha2_0.05',
}


def _balance(lines, kind: str, run: str) -> dict[int, float]:
  measures = {
    'loss': lambda line: line['final']['total']['loss'],
    # Max ÷ mean − 1 in every line: the files' older ones, without the − 1, have been converted.
    'MaxVio': lambda line: line['max_vio']['last_tenth'],
    'idle experts': lambda line: line['idle_experts'],
    'group load': lambda line: np.mean(
      [np.reshape(load, (7, -1)).mean(axis=1).max() for load in line['expert_load']]
    ),
  }
  return {line['seed']: measures[kind](line) for line in lines if line['run'] == run}


def _laws(lines) -> dict[int, tuple[float, ...]]:
  """For each seed, the numbers of `_OF_LAWS`: of power laws of loss over compute, fitted to both
  models with one shared floor, and read off straight lines over log compute.
  """
  from scipy.optimize import brentq, curve_fit

  made = {}
  for seed in sorted({line['seed'] for line in lines}):
    points = {'dense': [], 'deepseek_moe': []}
    for line in lines:
      if line['seed'] == seed:
        point = line['train_flops'] / 1e13, line['final']['total']['loss']
        points[line['run'].rpartition('_d')[0]].append(point)
    dense, moe = (np.array(sorted(points[name])).T for name in points)
    x = np.concatenate([dense[0], moe[0]])

    def law(x, floor, a, b, c, d):
      of_dense = np.arange(len(x)) < dense.shape[1]  # noqa: B023
      return floor + np.where(of_dense, a * x**-b, c * x**-d)

    losses = np.concatenate([dense[1], moe[1]])
    start = (losses.min() / 2, losses.min() / 2, 0.1, losses.min() / 2, 0.1)
    bounds = ([0, 1e-4, 0.01, 1e-4, 0.01], [losses.min(), 1e4, 10, 1e4, 10])
    found = curve_fit(law, x, losses, start, bounds=bounds, max_nfev=20000)[0]
    _, a, b, c, d = found
    best, lowest = dense[:, dense[1].argmin()]
    above = lambda log_x: c * np.exp(log_x) ** -d - a * best**-b  # noqa: B023
    falls = np.minimum.accumulate(moe[1])
    made[seed] = (
      np.exp(brentq(above, -20, 20)) / best,
      np.sqrt(np.mean((law(x, *found) - losses) ** 2)),
      np.exp(np.interp(-lowest, -falls, np.log(moe[0]))) / best,
      np.interp(np.log(best), np.log(moe[0]), moe[1]) - lowest,
    )
  return made
