"""All files of the report: a folder a study, and one page that holds everything."""

import html
from collections.abc import Sequence
from pathlib import Path

from experiments.reports import pilot
from experiments.reports import study as studies
from experiments.reports.blocks import Block, Code, Heading, Table, Text, to_html, to_markdown
from experiments.studies import STUDIES
from experiments.studies.intervals import RULE

_TITLE = 'DeepSeekMoE in JAX: the studies'
_INTRODUCTION = (
  'Each study tests a claim of the DeepSeekMoE paper (arXiv 2401.06066) on proxies of its models. Everything below is '
  'drawn from the runs.jsonl beside it, a line a finished run.'
)
_STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --soft: #656d76; --page: #ffffff; --rule: #d8dee4; --link: #0969da; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #9198a1; --page: #0d1117; --rule: #30363d;
  --link: #58a6ff; } }
body { max-width: 58rem; margin: 2rem auto; padding: 0 1rem; color: var(--ink); background: var(--page);
  font: 16px/1.5 system-ui, 'DejaVu Sans', sans-serif; }
section { border-top: 1px solid var(--rule); margin-top: 2.5rem; }
a { color: var(--link); }
figure { margin: 1rem 0; }
figure svg { max-width: 100%; height: auto; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.85rem; margin: 1rem 0; }
th, td { border-bottom: 1px solid var(--rule); padding: 0.25rem 0.6rem; text-align: left; vertical-align: top; }
th { color: var(--soft); font-weight: 600; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
pre { overflow-x: auto; border: 1px solid var(--rule); padding: 0.6rem; font-size: 0.85rem; }
"""


def files(results: Path) -> dict[Path, str | None]:
  """What the report consists of, by path; None for a figure that must not be there. Writes nothing."""
  loaded = [studies.load(name, results) for name in STUDIES]
  made: dict[Path, str | None] = {}
  for study in loaded:
    made[results / study.name / 'README.md'] = to_markdown(studies.blocks(study))
    made[results / study.name / 'figure.svg'] = study.figure or None
  made[results / pilot.NAME / 'README.md'] = to_markdown(pilot.blocks(results, level=1))
  made[results / 'index.html'] = _page(loaded, pilot.blocks(results, level=2))
  return made


def _page(loaded: Sequence[studies.Study], of_the_pilot: Sequence[Block]) -> str:
  rows = tuple((study.source, study.claim, study.in_words) for study in loaded)
  lines = [line for study in loaded for line in study.lines]
  head: list[Block] = [
    Heading(_TITLE, 1),
    Text(_INTRODUCTION),
    Table(('study', 'claim', 'verdict'), rows, tuple(f'#{study.name}' for study in loaded)),
    Text(RULE),
    Text(studies.ALL_PROXIES),
    Text(studies.runs_in_words(lines) if lines else 'No run has finished yet.', 'All studies:'),
    Code('python -m launch.sweep --sweep=experiments/studies/STUDY.py\nmake report'),
  ]
  sections = [
    f'<section id="{study.name}">\n{to_html(studies.blocks(study, alone=False))}\n</section>'
    for study in loaded
  ]
  sections.append(f'<section id="{pilot.NAME}">\n{to_html(of_the_pilot)}\n</section>')
  return '\n'.join(
    [
      '<!DOCTYPE html>',
      '<html lang="en">',
      '<head>',
      '<meta charset="utf-8">',
      '<meta name="viewport" content="width=device-width, initial-scale=1">',
      f'<title>{html.escape(_TITLE)}</title>',
      f'<style>{_STYLE}</style>',
      '</head>',
      '<body>',
      to_html(head),
      *sections,
      '</body>',
      '</html>',
      '',
    ]
  )
