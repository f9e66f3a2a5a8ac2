"""The committed verdicts, computed again from the committed lines by independent code: json, NumPy
and SciPy, nothing from experiments/. The results are compared with each study's page.
"""

import re
from pathlib import Path

import numpy as np
import pytest

from tests.experiments.reports.recomputed import RESULTS, differences, lines_of, losses_of
from tests.launch.runs.programs import ROOT

_FAILS = 'does not hold at this scale'


def _folders():
  """The studies' result folders, of both scales, that exist."""
  return sorted(
    path.parent
    for pattern in ('*/runs.jsonl', 'earlier/*/runs.jsonl')
    for path in RESULTS.glob(pattern)
    if not path.parent.name.startswith('pilot')
  )


def _table(folder: Path) -> list[dict[str, str]]:
  """The table of comparisons: each row as {column: cell}."""
  text = (folder / 'README.md').read_text(encoding='utf-8')
  [table] = re.findall(r'^\| paired difference \|.*?(?=\n\n)', text, re.DOTALL | re.MULTILINE)
  lines = re.sub(r'−(?=\d)', '-', table).splitlines()  # numbers, not names of differences
  header, _, *rows = [line.strip('| ').split(' | ') for line in lines]
  return [dict(zip(header, row, strict=True)) for row in rows]


@pytest.mark.parametrize(
  'folder', _folders(), ids=lambda folder: f'{folder.parent.name}-{folder.name}'
)
def test_a_study_says_what_its_lines_say(folder):
  from scipy import stats

  lines, checked = lines_of(folder), []
  for row in _table(folder):
    what = re.sub(r', at (most|least)$', '', row['paired difference'])
    values = differences(folder.name, lines, what)
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
  _check_outcomes(checked)
  _check_verdict(folder, checked)


def _is_of_loss(row) -> bool:
  others = (
    'MaxVio|idle experts|group load|by the law|at 100 − at 10|gains|ratio|class|domain|'
    'exact replies'
  )
  return not re.search(others, row['paired difference'])


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
  family = [row for row in rows if row['decides the claim'] in ('yes', 'presupposed')]
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
    low = -np.inf if row['paired difference'].endswith(', at most') else low
    high = np.inf if row['paired difference'].endswith(', at least') else high
    inside = (above < low or above == -np.inf) and (high < below or below == np.inf)
    outside = high <= above or low >= below
    own = 'holds' if inside else _FAILS if outside else 'undecided'
    expected = 'undecided' if row.get('open') else own
    assert row['outcome'].partition(':')[0] == expected, row
    is_level = own == 'undecided' and -0.02 <= low <= high <= 0.02
    is_level &= row['expected'] in ('below 0', 'above 0') and _is_of_loss(row)
    assert row['outcome'].startswith('undecided: level') == is_level, row


def _check_verdict(folder, rows):
  """Checks the verdict's outcome by those of the comparisons, and that it has the numbers of those
  that it is for, and of those beside the claim that do not hold.
  """
  text = (folder / 'README.md').read_text(encoding='utf-8')
  said, reason = re.search(r'^\*\*Verdict: (.+?)\.\*\* (.+)$', text, re.MULTILINE).groups()
  if re.fullmatch(r'\d+ of \d+ runs finished\.', reason):
    assert said == 'undecided'
    return
  outcome = lambda row: row['outcome'].partition(':')[0]
  role = lambda name: [row for row in rows if row['decides the claim'] == name]
  claimed, premises = role('yes'), role('presupposed')
  of = lambda rows, outcomes: [row for row in rows if outcome(row) in outcomes]
  failed = of(claimed, [_FAILS])
  not_met = of(claimed, ['undecided']) + of(premises, [_FAILS, 'undecided'])
  if failed:
    expected, named = _FAILS, failed + of(premises, [_FAILS, 'undecided'])
  elif not not_met:
    expected, named = 'holds', claimed
  elif all(row['outcome'].startswith('undecided: level') for row in not_met) and not (
    of(premises, [_FAILS, 'undecided'])
  ):
    expected, named = 'level within 0.02 at this scale', not_met
  else:
    expected, named = 'undecided', not_met
  assert said == expected
  for row in named + of(role('no'), [_FAILS]):
    if row['mean'] != '–':
      digits = min(len(row['mean'].partition('.')[2]), 3)
      shown = float(row['mean'])
      # A mean that the table has rounded already may round the other way.
      near = {f'{abs(shown) + more * 10**-4:.{digits}f}' for more in (-0.5, 0, 0.5)}
      assert any(number in reason for number in near | {row['mean'].lstrip('-')}), row
  readme = (ROOT / 'README.md').read_text(encoding='utf-8')
  if f'({folder.relative_to(ROOT)}/README.md)' in readme:
    assert f'| {said}: {reason.removesuffix(".")} |'.lower() in readme.lower()


def test_five_seeds_are_what_the_spread_of_three_asks_for():
  """The seeds for a power of 0.9 at half of the paper's differences, by a noncentral t;
  studies.intervals adds quantiles instead.
  """
  from scipy import stats

  def power(n, difference, sd):
    critical = stats.t.ppf(0.975, n - 1)
    return stats.nct.sf(critical, n - 1, difference / sd * np.sqrt(n))

  lines = [line for line in lines_of(RESULTS / 'table1') if line['seed'] < 3]
  moe = losses_of(lines, 'deepseek_moe')
  wanted = {}
  for run, paper in (('gshard', 0.059), ('switch', 0.073), ('hash', 0.124), ('dense', 0.252)):
    other = losses_of(lines, run)
    sd = np.std([moe[seed] - other[seed] for seed in range(3)], ddof=1)
    wanted[run] = next(n for n in range(2, 30) if power(n, paper / 2, sd) >= 0.9)
  assert max(wanted.values()) == 5
  said = (RESULTS / 'pilot_long' / 'README.md').read_text()
  assert 'asks for 3, 3, 5 and 3 seeds' in said and list(wanted.values()) == [3, 3, 5, 3]
  whole = lines_of(RESULTS / 'table1')
  moe, gshard = (losses_of(whole, run) for run in ('deepseek_moe', 'gshard'))
  sd = np.std([moe[seed] - gshard[seed] for seed in range(5)], ddof=1)
  step = 0.059 / 3 / 2
  assert f'{sd:.3f}' == '0.010' and power(12, step, sd) < 0.9 <= power(13, step, sd)


def test_what_two_kinds_of_machine_make_of_a_run():
  of = lambda name: losses_of(lines_of(RESULTS / name), 'deepseek_moe')
  epyc, xeon = of('table1'), of('disable_top')
  apart = [epyc[seed] - xeon[seed] for seed in range(5)]
  said = (RESULTS / 'method.html').read_text()
  spread, shift = np.std(apart, ddof=1), np.mean(apart)
  assert f'{spread:.4f} (standard deviation over seeds), and by {shift:.4f} in the mean' in said
