"""The overview before the studies: their verdicts on the claims, as a figure and a table."""

import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path

from experiments.reports import svg
from experiments.reports.blocks import Table, to_markdown
from experiments.reports.study import Study
from experiments.studies import BEYOND, STUDIES, analysis
from experiments.studies.verdicts import LOSS, Role
from experiments.sweeps import plan
from moe.errors import UserError, of_file

FIGURE = 'claims.svg'
CAPTION = (
  'Paired differences of held-out loss that the claims are about, and the share of compute of '
  "Tables 3 and 6, with 95% intervals. Diamonds are the paper's, at its scale. The range that a "
  'claim expects is shaded. An arrow stands for a point beyond the axis, with its number beside it.'
)
_WIDTH = 920
_PANELS = (
  # In the paper Dense − DeepSeekMoE is 0.25.
  (
    LOSS,
    "Differences of loss that decide the paper's claims",
    'difference of loss, nats a token',
    (-0.3, 0.3),
  ),
  ('share', 'Compute at equal loss', "share of the best Dense's training FLOPs", (0.0, 1.0)),
)
# The mark before the verdicts: on all studies of the paper, or on those that it names.
_START = re.compile('<!-- verdicts(?: of ([a-z0-9_ ]+))?: make report -->')
_END = '<!-- end of verdicts -->'


def figure(studies: Sequence[Study]) -> str:
  """The figure as SVG; '' if no comparison has a value yet."""
  rows = [
    dataclasses.replace(each, what=f'{study.source}: {each.what}')
    for study in studies
    if study.of_the_paper
    for each in study.analysis.comparisons
    if each.role is Role.CLAIM and each.interval
  ]
  panels = [
    analysis.differences(title, rows, unit, axis, limits=limits, intervals=True)
    for unit, title, axis, limits in _PANELS
    if any(each.unit == unit for each in rows)
  ]
  return svg.figure('claims', CAPTION, panels, _WIDTH, columns=1) if panels else ''


def table(studies: Sequence[Study]) -> Table:
  """One row a study, linked to its section of the page."""
  rows = tuple((study.title, study.claim, study.in_words) for study in studies)
  links = tuple(f'#{svg.identifier(study.name)}' for study in studies)
  return Table(('study', 'claim', 'verdict'), rows, links)


def with_verdicts(file: Path, studies: Sequence[Study], results: Path) -> str:
  """The text of a file with a table of verdicts between its marks: on the paper's claims, or on the
  studies that the first mark names. UserError if the file, its marks or a named study is missing.
  """
  try:
    text = file.read_text(encoding='utf-8')
  except OSError as error:
    raise of_file(error, file) from error
  start, end = _START.search(text), text.find(_END)
  if not start or end < start.end():
    raise UserError(
      f'{file} (--verdicts) must have the lines <!-- verdicts: make report --> and {_END}, '
      'in this order'
    )
  names = start[1].split() if start[1] else STUDIES
  if unknown := [name for name in names if name not in (*STUDIES, *BEYOND)]:
    raise UserError(f'{file} (--verdicts): there is no study {unknown[0]}, which its mark names')
  found, rows, links = {study.name: study for study in studies}, [], []
  for name in names:
    if study := found.get(name):
      said = study.in_words
      leads_to = results / name / 'README.md'
    else:
      study, said = plan.load(f'experiments/studies/{name}.py'), 'not run yet'
      leads_to = Path(f'experiments/studies/{name}.py')
    links.append(Path(os.path.relpath(leads_to, file.parent)).as_posix())
    rows.append((study.source or name, study.claim, said))
  made = to_markdown([Table(('study', 'claim', 'verdict here'), tuple(rows), tuple(links))])
  return f'{text[: start.end()]}\n\n{made}\n{text[end:]}'
