"""The report on runs with known numbers: what it says and draws,
and that its bytes depend on nothing else.
"""

import collections
import itertools
import math
import os
import re
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from experiments.reports import axes, blocks, page, study, svg
from experiments.reports.lines import MOST_MARKED
from experiments.studies import STUDIES, scaling
from experiments.studies.analysis import Panel, Results, Series
from experiments.studies.intervals import Interval
from experiments.studies.verdicts import FAILS, HOLDS, UNDECIDED, Role
from experiments.sweeps import ledger
from tests import in_process
from tests.experiments.reports import synthetic
from tests.launch.runs import programs


def test_every_claim_holds_on_the_papers_own_numbers(results):
  for name in STUDIES:
    loaded = study.load(name, results)
    assert (name, loaded.verdict.outcome, loaded.missing) == (name, HOLDS, ())
    assert loaded.analysis.cannot_show and loaded.claim[0].isupper()
    for comparison in loaded.analysis.comparisons:
      assert comparison.interval.n == 3


def test_the_table_has_the_mean_the_interval_and_the_paired_difference(tmp_path):
  of = lambda run, evaluation, seed: (
    {'gshard': 2.0, 'deepseek_moe': 1.5}.get(run, 3.0) + 0.1 * (seed - 1)
  )
  made = synthetic.lines('table1', of)
  synthetic.write(tmp_path, 'table1', made)
  active = next(line['active_params'] for line in made if line['run'] == 'gshard')
  flops = next(
    f'{line["train_flops"]:.2e}'.replace('e+', 'e') for line in made if line['run'] == 'gshard'
  )
  text = blocks.to_markdown(study.blocks(study.load('table1', tmp_path)))
  half = 4.3027 * 0.1 / 3**0.5
  size = f'{active / 1e6:.2f}M | {flops} | 3'
  assert f'| {size} | 2.0000 | {2 - half:.4f} to {2 + half:.4f} | 2.000 | 1.867 |' in text
  found = '−0.5000 | −0.5000 to −0.5000 | 3 | – | below 0'
  assert f'| DeepSeekMoE − GShard | {found} | holds | yes | −0.059 |' in text


@pytest.mark.parametrize(('gshard', 'outcome'), [(1.7, FAILS), (1.9, HOLDS)])
def test_the_verdict_follows_the_numbers(gshard, outcome, tmp_path):
  of = lambda run, evaluation, seed: (
    gshard if run == 'gshard' else synthetic.loss(run, evaluation, 0)
  )
  synthetic.write(tmp_path, 'half_active', synthetic.lines('half_active', of))
  loaded = study.load('half_active', tmp_path)
  assert loaded.verdict.outcome == outcome
  assert f'**Verdict: {outcome}.**' in blocks.to_markdown(study.blocks(loaded))


_OF_THE_CLAIM = {
  'table1': [
    'DeepSeekMoE − GShard',
    'DeepSeekMoE − Switch',
    'DeepSeekMoE − Hash Layer',
    'DeepSeekMoE − Dense',
  ],
  'half_active': ['half activated − GShard'],
  'fewer_active': ['4 routed − GShard'],
  'larger': ['DeepSeekMoE − GShard×1.5', 'DeepSeekMoE − Dense×16'],
  'scaling': ["DeepSeekMoE's share of the compute at the best Dense's, by the law"],
}


@pytest.mark.parametrize('name', _OF_THE_CLAIM)
def test_what_else_is_expected_does_not_decide_the_claim(name, results):
  comparisons = study.load(name, results).analysis.comparisons
  assert [each.what for each in comparisons if each.role is Role.CLAIM] == _OF_THE_CLAIM[name]
  assert any(each.role is Role.BESIDE for each in comparisons)


def test_an_order_that_the_claim_does_not_state_does_not_fail_it(tmp_path):
  of = lambda run, evaluation, seed: (
    2.5 if run == 'dense' else synthetic.loss(run, evaluation, seed)
  )
  swapped = lambda run, evaluation, seed: of(
    {'hash': 'switch', 'switch': 'hash'}.get(run, run), evaluation, seed
  )
  synthetic.write(tmp_path, 'table1', synthetic.lines('table1', swapped))
  loaded = study.load('table1', tmp_path)
  assert loaded.verdict.outcome == HOLDS
  text = blocks.to_markdown(study.blocks(loaded))
  assert re.search(rf'\| Switch − Hash Layer \|.*\| {FAILS} \| no \|', text)
  assert re.search(
    r'beside the claim: Switch is [\d.]+ above Hash Layer \(expected: below 0\)$',
    loaded.verdict.reason,
  )


def test_being_level_with_larger_models_that_are_no_better_decides_nothing(tmp_path):
  behind = lambda evaluation, seed: synthetic.loss('gshard', evaluation, seed) + 0.03
  of = lambda run, *which: behind(*which) if run == 'dense_x16' else synthetic.loss(run, *which)
  synthetic.write(tmp_path, 'larger', synthetic.lines('larger', of))
  loaded = study.load('larger', tmp_path)
  premises = [each for each in loaded.analysis.comparisons if each.role is Role.PREMISE]
  assert {each.what: each.outcome for each in premises} == {
    'GShard×1.5 − GShard': HOLDS,
    'Dense×16 − GShard': FAILS,
  }
  assert loaded.verdict.outcome == UNDECIDED and loaded.verdict.reason.startswith(
    'Dense×16 is 0.030 above GShard (presupposed'
  )
  assert f'| {FAILS} | presupposed |' in blocks.to_markdown(study.blocks(loaded))


def test_an_open_comparison_says_what_would_decide_it(tmp_path):
  of = lambda run, evaluation, seed: (
    2.0 + (0.01 * (seed - 1) - 0.002 if run == 'deepseek_moe_half' else 0)
  )
  synthetic.write(tmp_path, 'half_active', synthetic.lines('half_active', of))
  loaded = study.load('half_active', tmp_path)
  assert loaded.verdict.outcome == UNDECIDED
  assert re.search(
    r'0.002 below GShard \(about \d+ seeds would decide for it\)', loaded.verdict.reason
  )


def test_absent_and_partial_studies_say_what_is_missing(tmp_path):
  absent = study.load('table1', tmp_path)
  # The study's own scale has 5 seeds; the lines below are of the earlier scale.
  assert absent.in_words == 'undecided: 0 of 25 runs finished' and absent.figure == ''
  assert absent.missing[0] == 'dense (seed 0, 1, 2, 3, 4)' and len(absent.missing) == 5
  made = synthetic.lines('table1')
  synthetic.write(
    tmp_path,
    'table1',
    [line for line in made if line['run'] in ('dense', 'hash') and line['seed'] < 2],
  )
  partial = study.load('table1', tmp_path)
  assert partial.in_words == 'undecided: 4 of 15 runs finished' and partial.figure == ''
  text = blocks.to_markdown(study.blocks(partial))
  assert 'dense (seed 2); hash (seed 2); switch (seed 0, 1, 2)' in text and 'figure.svg' not in text
  assert '| Switch | – | – | – | 0 | – | – | – | 1.881 |' in text and 'nan' not in text.lower()


@pytest.mark.parametrize('name', STUDIES)
@pytest.mark.parametrize('seeds', [0, 1])
def test_every_study_can_be_drawn_without_runs_and_of_one_seed(name, seeds, tmp_path):
  synthetic.write(tmp_path, name, synthetic.lines(name, seeds=range(seeds)))
  loaded = study.load(name, tmp_path)
  assert loaded.verdict.outcome == UNDECIDED and bool(loaded.figure) == bool(seeds)
  assert 'nan' not in blocks.to_markdown(study.blocks(loaded))


def test_what_does_not_count_is_missing(results):
  """A line of another config does not count, nor does one that lacks an evaluation."""
  made = {(line['run'], line['seed']): line for line in synthetic.lines('fewer_active')}
  other, lacking = (made['deepseek_moe', seed] for seed in range(2))
  file = ledger.path(results, 'fewer_active')
  file.unlink()
  lacking['evaluations'].popitem()
  other['config_hash'] = '00000000'
  synthetic.write(results, 'fewer_active', made.values())
  assert study.load('fewer_active', results).in_words == 'undecided: 4 of 6 runs finished'


def _lines_with_diverged(name, run, seeds=(1,)):
  made = synthetic.lines(name)
  for line in made:
    if line['run'] == run and line['seed'] in seeds:
      line['final']['total']['loss'] = float('nan')
      line['expert_load'] = [[float('nan')] * 63] * 3
  return made


def test_a_diverged_run_is_finished_and_leaves_open_what_needs_it(tmp_path):
  synthetic.write(tmp_path, 'table1', _lines_with_diverged('table1', 'switch'))
  text = ledger.path(tmp_path, 'table1').read_text()
  assert 'NaN' not in text and '"loss": null' in text
  loaded = study.load('table1', tmp_path)
  assert (loaded.missing, loaded.diverged) == ((), ('switch (seed 1)',))
  assert loaded.in_words == 'undecided: DeepSeekMoE − Switch (a run of seed 1 has diverged)'
  text = blocks.to_markdown(study.blocks(loaded))
  assert '**Diverged:** switch (seed 1).' in text and 'Missing' not in text and 'nan' not in text
  assert loaded.figure and '| DeepSeekMoE − Switch | – | – | 3 |' in text


@pytest.mark.parametrize('name', STUDIES)
def test_every_study_can_be_drawn_with_a_diverged_run(name, tmp_path):
  run = synthetic.lines(name)[0]['run']
  synthetic.write(tmp_path, name, _lines_with_diverged(name, run))
  assert study.load(name, tmp_path).diverged == (f'{run} (seed 1)',)
  synthetic.write(tmp_path, name, _lines_with_diverged(name, run, seeds=(0, 1, 2)))
  loaded = study.load(name, tmp_path)
  assert loaded.diverged == (f'{run} (seed 0, 1, 2)',) and 'nan' not in blocks.to_markdown(
    study.blocks(loaded)
  )


@pytest.mark.parametrize(
  ('run', 'seeds', 'outcome'),
  [
    ('alpha1_0', [1], HOLDS),
    ('alpha1_0.1', [1], HOLDS),
    ('alpha1_0.001', [1], UNDECIDED),
    ('alpha1_0.001', [0, 1, 2], FAILS),
  ],
)
def test_divergence_is_an_outcome_of_the_balance_losses(run, seeds, outcome, tmp_path):
  synthetic.write(tmp_path, 'balance', _lines_with_diverged('balance', run, seeds))
  assert study.load('balance', tmp_path).verdict.outcome == outcome


def test_more_seeds_than_asked_for_count(tmp_path):
  synthetic.write(tmp_path, 'half_active', synthetic.lines('half_active', seeds=range(5)))
  loaded = study.load('half_active', tmp_path)
  assert loaded.verdict.outcome == HOLDS and {
    c.interval.n for c in loaded.analysis.comparisons
  } == {5}


def test_means_over_other_seeds_are_marked_as_such(tmp_path):
  made = synthetic.lines('half_active', seeds=range(5))
  equal = lambda: (
    'not comparable' in blocks.to_markdown(study.blocks(study.load('half_active', tmp_path)))
  )
  synthetic.write(tmp_path, 'half_active', [line for line in made if line['seed'] < 3])
  assert not equal()
  synthetic.write(tmp_path, 'half_active', [line for line in made if line['run'] == 'gshard'])
  assert equal()


def test_the_share_of_the_compute():
  dense = [(1e12, 3.0), (4e12, 2.0)]
  # Half way in log FLOPs.
  assert scaling.compute_share(dense, [(1e12, 2.5), (4e12, 1.5)]) == pytest.approx(0.5)
  assert scaling.compute_share(dense, [(1e12, 2.0), (4e12, 1.5)]) == 0.25
  assert scaling.compute_share(dense, [(2e12, 1.9), (4e12, 1.5)]) == 0.5  # at most
  assert scaling.compute_share(dense, [(2e12, 3.0), (6e12, 2.1)]) == 1.5  # at least
  assert scaling.loss_at([(1e12, 2.5), (4e12, 1.5)], 2e12) == pytest.approx(2.0)
  assert [scaling.loss_at([(1e12, 2.5), (4e12, 1.5)], compute) for compute in (1, 1e15)] == [
    2.5,
    1.5,
  ]


def test_the_law_finds_what_curves_were_made_with():
  dense_law = lambda compute: 1.7 + (compute / 7e12) ** -0.31
  moe_law = lambda compute: 1.7 + (compute / 3e12) ** -0.37
  dense = [(compute, dense_law(compute)) for compute in (2e12, 6e12, 2e13, 5e13)]
  moe = [(compute, moe_law(compute)) for compute in (3e12, 1e13, 3e13)]
  found = scaling.fit(dense, moe)
  assert found.error < 1e-6 and found.floor == pytest.approx(1.7, abs=1e-3)
  assert found.dense[1] == pytest.approx(0.31, abs=1e-3)
  assert moe_law(found.share(2e13) * 2e13) == pytest.approx(dense_law(2e13))
  # Straight lines over log compute determine no floor, but they determine a share.
  line = lambda compute: 4 - 0.1 * math.log(compute / 1e13)
  found = scaling.fit(
    [(compute, line(compute)) for compute, _ in dense],
    [(compute, line(compute / 0.6)) for compute, _ in moe],
  )
  assert found.share(2e13) == pytest.approx(0.6, rel=0.02)


def test_a_dense_model_that_costs_more_and_is_no_better_is_not_what_is_compared_with():
  dense, moe = [(1e12, 3.5), (2e12, 3.0), (8e12, 3.1)], [(5e11, 3.6), (2e12, 3.0), (4e12, 2.5)]
  assert scaling.best(dense) == (2e12, 3.0)
  assert scaling.compute_share(dense, moe) == pytest.approx(1.0)
  assert scaling.best([(1e12, 2.0), (2e12, 2.0)]) == (1e12, 2.0)


def test_what_is_read_off_a_curve_is_said_to_be_a_bound(tmp_path):
  dense = [(1e12, 3.0), (4e12, 2.0)]
  # The curve lies below its chord.
  assert scaling.share_is_bound(dense, [(1e12, 2.5), (4e12, 1.5)]) == 'at most'
  assert scaling.share_is_bound(dense, [(1e12, 2.5), (3e12, 2.0), (4e12, 1.5)]) == ''
  assert scaling.share_is_bound(dense, [(2e12, 1.9), (4e12, 1.5)]) == 'at most'
  assert scaling.share_is_bound(dense, [(2e12, 3.0), (6e12, 2.1)]) == 'at least'
  assert scaling.loss_is_bound(dense, [(1e12, 2.5), (5e12, 1.5)]) == 'at most'
  assert scaling.loss_is_bound(dense, [(1e12, 2.5), (4e12, 1.5)]) == ''
  assert scaling.loss_is_bound(dense, [(1e12, 2.5), (2e12, 1.5)]) == 'at most'
  assert scaling.loss_is_bound(dense, [(5e12, 2.5), (6e12, 1.5)]) == 'at least'
  of = lambda run, evaluation, seed: 1.5 if run.startswith('deepseek') else 2.0
  synthetic.write(tmp_path, 'scaling', synthetic.lines('scaling', of))
  assert (
    study.load('scaling', tmp_path)
    .analysis.comparisons[2]
    .what.endswith("best Dense's loss, at most")
  )


def test_a_share_above_the_bound_that_is_at_most_that_decides_nothing():
  losses = dict(zip(('dense_d48', 'dense_d96', 'dense_d144'), (3.0, 2.8, 2.7)))
  losses |= dict(
    zip(('deepseek_moe_d48', 'deepseek_moe_d96', 'deepseek_moe_d144'), (2.9, 2.69, 2.5))
  )
  results = Results(
    synthetic.lines('scaling', lambda run, evaluation, seed: losses[run] + seed * 1e-4)
  )
  _, _, share, ahead = scaling.analyse(results).comparisons
  assert (
    share.interval.low > 0.5 and share.outcome == UNDECIDED and 'only a bound' in share.would_decide
  )
  assert ahead.at_most and ahead.outcome == HOLDS


def test_two_builds_are_the_same_bytes_whatever_the_order_of_the_lines(results, tmp_path_factory):
  again = tmp_path_factory.mktemp('again')
  for name in STUDIES:
    synthetic.write(again, name, list(ledger.read(ledger.path(results, name)).values())[::-1])
  for folder in (results, again):
    programs.check('report', f'--results={folder}')
  files = sorted(path.relative_to(results) for path in results.rglob('*') if path.is_file())
  assert len(files) == 3 + 3 * len(STUDIES)  # three of the page; the pilots have no lines
  # The commands in the files name the folder.
  of = lambda folder, file: (folder / file).read_bytes().replace(str(folder).encode(), b'FOLDER')
  for file in files:
    if file.name != 'runs.jsonl':
      assert of(results, file) == of(again, file)


def test_what_is_committed_is_what_the_runs_give():
  """`make report` on a fresh clone changes nothing.
  After new runs, or a change of a study: make report.
  """
  results = Path('experiments/results')
  made = page.of_folder(results, [Path('README.md'), Path('docs/routing.md')]) | page.of_folder(
    results / page.EARLIER
  )
  for path, content in made.items():
    if content is None:
      assert not path.exists(), f'{path} is of other runs: make report'
    else:
      assert path.is_file() and path.read_bytes() == content.encode(), (
        f'{path} is not up to date: make report'
      )


def test_a_config_and_seed_have_one_loss_in_all_studies():
  """A config that studies share is trained once; training it again on the same kind of machine must
  give the same loss. (Another CPU rounds otherwise, which changes a loss as much as a seed does.)
  """
  losses = collections.defaultdict(set)
  for path in Path('experiments/results').rglob('runs.jsonl'):
    for line in ledger.read(path).values():
      key = line['config_hash'], line['seed'], line['data'], line['machine']['cpu']
      losses[key].add(line['final']['total']['loss'])
  assert losses and {key: found for key, found in losses.items() if len(found) > 1} == {}


def test_marks_are_asked_of_a_file_for_verdicts(results, tmp_path):
  file = tmp_path / 'README.md'
  file.write_text('# Mine\n')
  assert 'must have the lines <!-- verdicts' in in_process.error_line(
    'report', f'--results={results}', f'--verdicts={file}'
  )
  assert (
    'no such file'
    in in_process.error_line(
      'report', f'--results={results}', f'--verdicts={tmp_path}/none.md'
    ).lower()
  )


def test_verdicts_of_the_studies_that_a_mark_names(results, tmp_path):
  file = tmp_path / 'docs' / 'MINE.md'
  file.parent.mkdir()
  mark = lambda names: (
    f'before\n<!-- verdicts of {names}: make report -->\nold\n<!-- end of verdicts -->\n'
  )
  file.write_text(mark('table1 balancing'))
  in_process.check('report', f'--results={results}', f'--verdicts={file}')
  before, *rows, after = file.read_text().splitlines()
  assert (before, after) == ('before', '<!-- end of verdicts -->') and 'old' not in rows
  of_table1, of_balancing = rows[-3:-1]
  assert of_table1.startswith(
    f'| [Table 1]({os.path.relpath(results, file.parent)}/table1/README.md)'
  )
  assert of_balancing.startswith('| [balancing](') and of_balancing.endswith('| not run yet |')
  file.write_text(mark('table1 nonsense'))
  said = in_process.error_line('report', f'--results={results}', f'--verdicts={file}')
  assert 'there is no study nonsense' in said


def test_a_figure_that_is_no_longer_drawn_goes(results):
  in_process.check('report', f'--results={results}')
  assert (results / 'table1' / 'figure.svg').is_file()
  ledger.path(results, 'table1').unlink()
  in_process.check('report', f'--results={results}')
  assert not (results / 'table1' / 'figure.svg').exists()


def test_a_damaged_line_is_one_line(tmp_path):
  file = ledger.path(tmp_path, 'table1')
  file.parent.mkdir()
  file.write_text('{"run"\n')
  assert 'line 1 is damaged' in in_process.error_line('report', f'--results={tmp_path}')


def test_figures_have_a_bar_or_point_for_each_value(results):
  for name in STUDIES:
    loaded = study.load(name, results)
    root = ET.fromstring(loaded.figure)
    classes = [element.get('class', '') for element in root.iter()]
    points = [
      point
      for panel in loaded.analysis.panels
      for series in panel.series
      for point in series.points
      if len(series.points) <= MOST_MARKED
    ]
    given = sum(found is not None for _, found in points)
    legend = sum(
      len(panel.series)
      for panel in loaded.analysis.panels
      if len(panel.series) > 1 and not panel.categories
    )
    assert sum(kind.startswith(('point', 'fill')) for kind in classes) == given + legend
    assert any(each.startswith('whisker') for each in classes)


def test_what_is_drawn_stays_inside_its_axes(results):
  for name in STUDIES:
    root = ET.fromstring(study.load(name, results).figure)
    width, height = float(root.get('width')), float(root.get('height'))
    for group in root.iter('{http://www.w3.org/2000/svg}g'):
      for circle in group.iter('{http://www.w3.org/2000/svg}circle'):
        assert 0 < float(circle.get('cx')) < width and 0 < float(circle.get('cy')) < height
      for text in group.iter('{http://www.w3.org/2000/svg}text'):
        assert 0 < float(text.get('x')) < width and 0 < float(text.get('y')) < height


def _drawn(panel):
  """(class, x) of the dots and diamonds, and the ends of the whiskers."""
  root = ET.fromstring(svg.figure('x', 'y', [panel]))
  points, whiskers = [], []
  for element in root.iter():
    kind = element.get('class', '')
    if kind.startswith('point'):
      start = element.get('cx') or re.match('M([0-9.]+) ', element.get('d'))[1]
      points.append((kind, float(start)))
    elif kind == 'whisker':
      whiskers.append(
        tuple(map(float, re.match('M([0-9.]+) [0-9.]+H([0-9.]+)', element.get('d')).groups()))
      )
  return points, whiskers


def test_what_cannot_be_negative_starts_at_zero_whatever_its_interval():
  values = ((0, Interval(1.7, 5.2, 3)), (1, Interval(0.0, 0.0, 3)))
  (first, second), (whisker,) = _drawn(
    Panel('idle', 'experts', (Series('', values),), ('a', 'b'), from_zero=True)
  )
  assert (
    whisker[0] == second[1] < first[1] < whisker[1]
  )  # the second is at 0, where the axis starts


def test_beyond_its_limits_a_point_is_an_arrow_at_the_edge_with_its_number():
  ours = Series('here', ((0, Interval(-0.1, 0.02, 3)), (1, Interval(0.5, 0.3, 3))))
  paper = Series('paper', ((0, Interval(-7.0)), (1, None)), paper=True)
  panel = Panel('both', 'loss', (ours, paper), ('a', 'b'), limits=(-0.2, 0.2))
  points, whiskers = _drawn(panel)
  below, inside, beyond = (x for _, x in points)
  assert below < inside < beyond and below < whiskers[0][0] < inside < whiskers[0][1] < beyond
  drawn = svg.figure('x', 'y', [panel])
  assert all(f'>{text}</text>' in drawn for text in ('−0.100', '0.500', '−7.000', 'not given'))


def test_ticks_are_round_and_hold_the_range():
  for low, high in itertools.product((-3.0, 0.0, 1.8041, 7.3), (7.31, 9.1, 120.0)):
    found = axes.ticks(low, high)
    assert found[0] <= low and found[-1] >= high and 2 <= len(found) <= 9
  assert axes.ticks(1.8, 2.06) == [1.8, 1.85, 1.9, 1.95, 2.0, 2.05, 2.1]
  assert len(axes.ticks(2.0, 2.0)) >= 2


def test_text_is_escaped_and_tables_keep_their_columns():
  table = blocks.Table(('a', 'b'), (('x | y', '<1>'),), ('#x',))
  assert blocks.to_markdown([table]).splitlines()[-1] == '| [x \\| y](#x) | &lt;1> |'
  assert '<td><a href="#x">x | y</a></td><td>&lt;1&gt;</td>' in blocks.to_html([table])


def test_make_report_is_the_program():
  done = subprocess.run(
    ['make', '--dry-run', 'report'], cwd=programs.ROOT, capture_output=True, text=True, check=True
  )
  assert 'python -m launch.report' in done.stdout
