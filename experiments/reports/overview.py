"""The one screen before the studies: what they say of the claims, as a figure and a table."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from experiments.reports import svg
from experiments.reports.blocks import Table, to_markdown
from experiments.reports.study import Study
from experiments.studies import STUDIES, analysis
from experiments.studies.verdicts import LOSS, Role
from experiments.sweeps import plan
from moe.errors import UserError, of_file

FIGURE = 'claims.svg'
CAPTION = (
  'Paired differences of held-out loss that the claims are about, with 95% intervals, and the '
  "paper's beside them, at its scale. An arrow is beyond the axis, its number beside it."
)
_TITLE = "Differences of loss that decide the paper's claims"
# Nats; Dense − DeepSeekMoE of the paper is 0.25.
_LIMITS = (-0.3, 0.3)
_START, _END = '<!-- verdicts: make report -->', '<!-- end of verdicts -->'


def figure(studies: Sequence[Study]) -> str:
  """SVG; '' where no comparison has a value yet."""
  rows = [
    dataclasses.replace(each, what=f'{study.source}: {each.what}')
    for study in studies
    if study.of_the_paper
    for each in study.analysis.comparisons
    if each.role is Role.CLAIM and each.unit == LOSS and each.interval
  ]
  panel = analysis.differences(_TITLE, rows, limits=_LIMITS)
  return svg.figure('claims', CAPTION, [panel]) if rows else ''


def table(studies: Sequence[Study]) -> Table:
  """A line a study, which leads to its section of the page."""
  rows = tuple(
    (study.title, study.claim, study.verdict.outcome if study.verdict else '') for study in studies
  )
  links = tuple(f'#{svg.identifier(study.name)}' for study in studies)
  return Table(('study', 'claim', 'verdict'), rows, links)


def in_readme(file: Path, studies: Sequence[Study], results: Path) -> str:
  """The text of a README with the verdicts on the paper's claims between its marks.
  UserError where these are not, or the file.
  """
  try:
    text = file.read_text(encoding='utf-8')
  except OSError as error:
    raise of_file(error, file) from error
  start, end = text.find(_START), text.find(_END)
  if not 0 <= start < end:
    raise UserError(f'{file} (--readme) must have the lines {_START} and {_END}, in this order')
  folder = results.as_posix()
  found, rows, links = {study.name: study for study in studies}, [], []
  for name in STUDIES:
    if study := found.get(name):
      said = study.in_words if study.missing else study.verdict.outcome
      links.append(f'{folder}/{name}/README.md')
    else:
      study, said = plan.load(f'experiments/studies/{name}.py'), 'not run yet'
      links.append(f'experiments/studies/{name}.py')
    rows.append((study.source, study.claim, said))
  made = to_markdown([Table(('study', 'claim', 'verdict here'), tuple(rows), tuple(links))])
  return f'{text[:start]}{_START}\n\n{made}\n{text[end:]}'
