"""Reports of a study of one's own, and of lines without its file."""

import json
import re

import pytest

from experiments.reports import page
from experiments.studies.common import PROXY
from experiments.sweeps import plan
from moe.errors import UserError
from tests import in_process
from tests.experiments.reports import synthetic

_OWN = """
from experiments.studies.common import Run

CLAIM = 'Twice the rate is better'


def sweep(scale):
  rates = {'<once>': 0.001, 'twice': 0.002}
  return [
    Run(name, 'experiments/quickstart.py', {'optimizer.peak_lr': rate})
    for name, rate in rates.items()
  ]
"""


_IMPORTS = 'import Run\nfrom experiments.studies.analysis import *'
_ANALYSE = """

def analyse(results):
  once, twice = (Entry(name, name) for name in ('<once>', 'twice'))
  return of_losses(results, [once, twice], [against(results, twice, once, below=1.0)], 'Much.')
"""


@pytest.fixture
def own(tmp_path):
  """(study's file, results folder) of a user's own study, with two seeds."""
  file = tmp_path / 'my_study.py'
  file.write_text(_OWN)
  jobs = plan.jobs(plan.load(str(file)), PROXY, [0, 1], {}, tmp_path / 'runs')
  losses = {('<once>', 0): 3.0, ('<once>', 1): 3.2, ('twice', 0): 2.9, ('twice', 1): 3.0}
  of = lambda run, evaluation, seed: losses[run, seed]
  made = [synthetic._line('my_study', job, run, of) for job in jobs for run in job.runs]
  synthetic.write(tmp_path / 'results', 'my_study', made[::-1])
  return file, tmp_path / 'results'


def test_a_study_of_ones_own_is_reported_and_no_other(own):
  file, results = own
  output = in_process.check('report', f'--sweep={file}', f'--results={results}')
  assert f'drawn: {results}/my_study/README.md' in output
  assert {path.name for path in results.rglob('*')} == {
    *('my_study', 'runs.jsonl', 'README.md', 'figure.svg')
  }
  text = (results / 'my_study' / 'README.md').read_text()
  half = 12.7062 * 0.05  # t of 1 degree of freedom; differences -0.1 and -0.2
  assert 'Twice the rate is better' in text and 'xz -9' not in text and 'Verdict' not in text
  assert re.search(
    r'\| twice \| .*M \| 2 \| 2\.9500 \| .* \| −0\.1500 '
    rf'\| −{0.15 + half:.4f} to {-0.15 + half:.4f} \| 0\.500 \|',
    text,
  ), text
  assert text.index('| &lt;once> |') < text.index('| twice |')  # in the order of the file
  assert f'python -m launch.sweep --sweep={file}' in text


def test_lines_of_a_try_with_other_settings_are_not_the_studys(own):
  """The lines of the try come after the study's in the same file."""
  file, results = own
  runs = results / 'my_study' / 'runs.jsonl'
  before = page.of_file(str(file), results)
  jobs = plan.jobs(plan.load(str(file)), PROXY, [0], {'train.num_steps': 7}, results / 'runs')
  of = lambda run, evaluation, seed: 1.0
  tried = [synthetic._line('my_study', job, run, of) for job in jobs for run in job.runs]
  runs.write_text(runs.read_text() + ''.join(json.dumps(line) + '\n' for line in tried))
  assert page.of_file(str(file), results) == before
  runs.write_text(''.join(json.dumps(line) + '\n' for line in tried))
  assert '1.0000' in page.of_file(str(file), results)[results / 'my_study' / 'README.md']


def test_seeds_that_the_file_promises_are_missing_until_they_are_there(own):
  _, results = own
  where = results.parent / 'promised' / 'my_study.py'
  where.parent.mkdir()
  where.write_text(
    _OWN.replace('CLAIM', 'SEEDS = 3\nCLAIM').replace('import Run', _IMPORTS) + _ANALYSE
  )
  text = page.of_file(str(where), results)[results / 'my_study' / 'README.md']
  assert '**Verdict: undecided.** 4 of 6 runs finished.' in text
  assert '<once> (seed 2); twice (seed 2)' in text.replace('&lt;', '<')


def test_commands_may_be_pasted(own):
  _, results = own
  where = results.parent / 'a folder' / 'my_study.py'
  where.parent.mkdir()
  where.write_text(_OWN)
  text = page.of_file(str(where), results)[results / 'my_study' / 'README.md']
  assert f"python -m launch.report '--sweep={where}'" in text


def test_what_a_folder_has_lines_of_is_reported_without_the_file(own):
  file, results = own
  file.unlink()
  made = page.of_folder(results)
  assert {path.relative_to(results).as_posix() for path, text in made.items() if text} == {
    *('my_study/README.md', 'my_study/figure.svg', 'index.html')
  }
  assert 'a claim of the DeepSeekMoE paper' not in made[results / 'index.html']
  assert page.of_folder(results / 'my_study').keys() == {
    *(results / 'my_study' / name for name in ('README.md', 'figure.svg'))
  }
  synthetic.write(results, 'shared_off', synthetic.lines('shared_off'))
  assert len(list(filter(None, page.of_folder(results).values()))) == 7


def test_a_study_of_ones_own_may_analyse_itself(own):
  _, results = own
  file = results.parent / 'analysed' / 'my_study.py'
  file.parent.mkdir()
  file.write_text(_OWN.replace('import Run', _IMPORTS) + _ANALYSE)
  text = page.of_file(str(file), results)[results / 'my_study' / 'README.md']
  assert '**Verdict: holds.**' in text and '| twice − &lt;once> |' in text and 'Much.' in text
  for code, words in (('return 3', 'must return an Analysis'), ('1 / 0', 'ZeroDivisionError')):
    (results.parent / f'other{len(words)}').mkdir()
    other = results.parent / f'other{len(words)}' / 'my_study.py'
    other.write_text(f'{_OWN}\n\ndef analyse(results):\n  {code}\n')
    with pytest.raises(UserError, match=words):
      page.of_file(str(other), results)


def test_without_lines_there_is_nothing_to_report(own, tmp_path):
  file, _ = own
  (tmp_path / 'empty').mkdir()
  with pytest.raises(UserError, match=r'no STUDY/runs\.jsonl in .*empty'):
    page.of_folder(tmp_path / 'empty')
  with pytest.raises(UserError, match=r'no line in .*empty/my_study/runs\.jsonl'):
    page.of_file(str(file), tmp_path / 'empty')


def test_results_that_are_nowhere_are_not_made_up(tmp_path):
  line = in_process.error_line('report', f'--results={tmp_path}/nowhere')
  assert str(tmp_path / 'nowhere') in line and not (tmp_path / 'nowhere').exists()
