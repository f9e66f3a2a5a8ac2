"""The committed verdicts, computed again from the committed lines by independent code: json, NumPy
and SciPy, nothing from experiments/. The results are compared with each study's page.
"""

import json
import re
from pathlib import Path

import numpy as np
import pytest

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
_SHARED_RATIO = {'1+7/63': 'shared_1', '2+6/62': 'shared_2', '4+4/60': 'shared_4'}
_STUDIES = {
  name: _RUN
  for name in ('table1', 'larger', 'granularity', 'half_active', 'fewer_active', 'shared_off')
} | {'shared_ratio': _SHARED_RATIO}
_FIGURE_4 = r"top (\d)/16 masked: rise − GShard×1.5's"


def _folders():
  """The studies' result folders, of both scales, that exist."""
  names = [*_STUDIES, 'disable_top', 'balance', 'scaling']
  folders = [RESULTS / part / name for part in ('', 'earlier') for name in names]
  return [folder for folder in folders if (folder / 'README.md').is_file()]


def _lines(folder: Path) -> list[dict]:
  return [json.loads(line) for line in (folder / 'runs.jsonl').read_text().splitlines()]


def _losses(lines, which) -> dict[int, float]:
  """The losses of `which`, a run or (run, evaluation), by seed; NaN where the run diverged."""
  run, evaluation = (which, None) if isinstance(which, str) else which
  scored = lambda line: line['evaluations'][evaluation] if evaluation else line['final']
  number = lambda value: np.nan if value is None else value  # diverged
  return {
    line['seed']: number(scored(line)['total']['loss']) for line in lines if line['run'] == run
  }


def _table(folder: Path) -> list[dict[str, str]]:
  """The table of comparisons: each row as {column: cell}."""
  text = (folder / 'README.md').read_text(encoding='utf-8')
  [table] = re.findall(r'^\| paired difference \|.*?(?=\n\n)', text, re.DOTALL | re.MULTILINE)
  lines = table.replace('−0', '-0').splitlines()  # numbers, not the names of differences
  header, _, *rows = [line.strip('| ').split(' | ') for line in lines]
  return [dict(zip(header, row, strict=True)) for row in rows]


def _differences(name: str, lines, what: str) -> np.ndarray | None:
  """The paired differences, one a seed; None for a comparison that is not computed here."""
  if name == 'scaling':
    return _shares(lines) if what.endswith('by the law') else None
  if name == 'balance':
    kind, _, pair = what.partition(': ')
    first, second = (_balance(lines, kind, _BALANCE[side]) for side in pair.split(' − '))
  elif name == 'disable_top':
    share = re.fullmatch(_FIGURE_4, what)[1]
    rises = []
    for run in ('deepseek_moe', 'gshard_x1_5'):
      plain, masked = _losses(lines, run), _losses(lines, (run, f'masked {share}/16'))
      rises.append({seed: masked[seed] - plain[seed] for seed in plain})
    first, second = rises
  else:
    sides = what.split(' − ')
    if len(sides) != 2 or not set(sides) <= _STUDIES[name].keys():
      return None
    first, second = (_losses(lines, _STUDIES[name][side]) for side in sides)
  return np.array([first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())])


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


def _shares(lines) -> np.ndarray:
  """For each seed, the MoE's compute over that of the best dense run, at equal loss: by power laws
  of loss over compute, fitted to both models with one shared floor.
  """
  from scipy.optimize import brentq, curve_fit

  shares = []
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
    _, a, b, c, d = curve_fit(law, x, losses, start, bounds=bounds, max_nfev=20000)[0]
    best = dense[0][dense[1].argmin()]
    above = lambda log_x: c * np.exp(log_x) ** -d - a * best**-b  # noqa: B023
    shares.append(np.exp(brentq(above, -20, 20)) / best)
  return np.array(shares)


@pytest.mark.parametrize(
  'folder', _folders(), ids=lambda folder: f'{folder.parent.name}-{folder.name}'
)
def test_a_study_says_what_its_lines_say(folder):
  from scipy import stats

  lines, checked = _lines(folder), []
  for row in _table(folder):
    values = _differences(folder.name, lines, row['paired difference'])
    if values is None:
      continue
    checked.append(row)
    assert row['seeds'] == str(len(values))
    if not len(values) or not np.isfinite(values).all():
      assert row['mean'] == '–'
      continue
    digits = len(row['mean'].partition('.')[2])
    # The law is fitted: another minimiser may differ in the last digit.
    near = {'abs': 0.6 * 10**-digits + (0.004 if folder.name == 'scaling' else 0)}
    assert float(row['mean']) == pytest.approx(values.mean(), **near)
    if len(values) < 2:
      assert row['95% interval'] == '–' and row['outcome'].startswith('undecided')
      continue
    low, high = stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))
    found = [float(end) for end in row['95% interval'].split(' to ')]
    assert found == [pytest.approx(low, **near), pytest.approx(high, **near)]
    row['p'], row['sides'] = _p(stats, values, row['expected']), (low, high)
  assert checked
  _check_outcomes(checked)


def _is_of_loss(row) -> bool:
  others = 'MaxVio:', 'idle experts:', 'group load:'
  what = row['paired difference']
  return not what.startswith(others) and not what.endswith('by the law')


def _bounds(expected: str) -> tuple[float, float]:
  if within := re.fullmatch(r'within ±([0-9.]+)', expected):
    return -float(within[1]), float(within[1])
  side, bound = re.fullmatch(r'(below|above) (-?[0-9.]+)', expected).groups()
  return (-np.inf, float(bound)) if side == 'below' else (float(bound), np.inf)


def _p(stats, values, expected) -> float:
  """The p-value against the nearest bound."""
  finite = [bound for bound in _bounds(expected) if np.isfinite(bound)]
  return max(stats.ttest_1samp(values, bound).pvalue for bound in finite)


def _check_outcomes(rows):
  """Checks outcomes by the intervals, and those that decide the claim also by Holm's steps."""
  # A comparison that lacks runs decides nothing, but counts as one of the family.
  family = [row for row in rows if row['decides the claim'] != 'no']
  family.sort(key=lambda row: row.get('p', 1.0))
  steps, open_from = len(family), None
  for step, row in enumerate(family):
    if open_from is None and steps - step > 1 and row.get('p', 1.0) >= 0.05 / (steps - step):
      open_from = step
    row['open'] = open_from is not None
  for row in rows:
    if 'p' not in row:
      continue
    (above, below), (low, high) = _bounds(row['expected']), row['sides']
    inside = above < low and high < below
    outside = high <= above or low >= below
    expected = 'holds' if inside else 'does not hold at this scale' if outside else 'undecided'
    if row.get('open'):
      expected = 'undecided'
    assert row['outcome'].partition(':')[0] == expected, row
    is_level = expected == 'undecided' and not row.get('open') and -0.02 <= low <= high <= 0.02
    is_level &= row['expected'] in ('below 0', 'above 0') and _is_of_loss(row)
    assert row['outcome'].startswith('undecided: level') == is_level, row


def test_five_seeds_are_what_the_spread_of_three_asks_for():
  """The seeds for a power of 0.9 at half of the paper's differences, by a noncentral t;
  studies.intervals adds quantiles instead.
  """
  from scipy import stats

  def power(n, difference, sd):
    critical = stats.t.ppf(0.975, n - 1)
    return stats.nct.sf(critical, n - 1, difference / sd * np.sqrt(n))

  lines = [line for line in _lines(RESULTS / 'table1') if line['seed'] < 3]
  moe = _losses(lines, 'deepseek_moe')
  wanted = {}
  for run, paper in (('gshard', 0.059), ('switch', 0.073), ('hash', 0.124), ('dense', 0.252)):
    other = _losses(lines, run)
    sd = np.std([moe[seed] - other[seed] for seed in range(3)], ddof=1)
    wanted[run] = next(n for n in range(2, 30) if power(n, paper / 2, sd) >= 0.9)
  assert max(wanted.values()) == 5
  said = (RESULTS / 'pilot_long' / 'README.md').read_text()
  assert 'asks for 3, 3, 5 and 3 seeds' in said and list(wanted.values()) == [3, 3, 5, 3]
  whole = _lines(RESULTS / 'table1')
  moe, gshard = (_losses(whole, run) for run in ('deepseek_moe', 'gshard'))
  sd = np.std([moe[seed] - gshard[seed] for seed in range(5)], ddof=1)
  step = 0.059 / 3 / 2
  assert f'{sd:.3f}' == '0.010' and power(12, step, sd) < 0.9 <= power(13, step, sd)


def test_what_two_kinds_of_machine_make_of_a_run():
  of = lambda name: _losses(_lines(RESULTS / name), 'deepseek_moe')
  epyc, xeon = of('table1'), of('disable_top')
  apart = [epyc[seed] - xeon[seed] for seed in range(5)]
  said = (RESULTS / 'method.html').read_text()
  spread, shift = np.std(apart, ddof=1), np.mean(apart)
  assert f'{spread:.4f} (standard deviation over seeds), and by {shift:.4f} in the mean' in said
