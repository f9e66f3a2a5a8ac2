"""All files of the report: a folder a study, and one page that holds everything."""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments import studies as shipped
from experiments.reports import overview, own, pilot, texts
from experiments.reports import study as studies
from experiments.reports.blocks import (
  Block,
  Figure,
  Heading,
  Link,
  List,
  Text,
  to_html,
  to_markdown,
)
from experiments.reports.svg import identifier
from experiments.studies import BEYOND, PILOTS, STUDIES
from experiments.studies.common import PROXY
from experiments.sweeps import places
from moe.errors import UserError
from moe.errors import of_file as of_system_file

_TITLE = 'DeepSeekMoE in JAX: the studies'
_INTRODUCTION = (
  'Each study tests a claim of the DeepSeekMoE paper (arXiv 2401.06066) on proxies of its models; '
  'studies beyond the paper come last. '
  'Everything below is drawn from the runs.jsonl files beside it, which have a line for each '
  'finished run.'
)
_OF_OTHERS = "Drawn from each study's runs.jsonl, which has a line for each finished run."
# The folder of the paper's studies at the scale before `long`, which are not in the verdicts.
EARLIER = 'earlier'
_OF_EARLIER = ' at the earlier scale, 3 tokens per activated parameter'
_EARLIER_IN_WORDS = (
  'The same studies at an earlier scale: 3 tokens per activated parameter, 3 seeds'
)
_LINES, METHOD = 'runs.jsonl', 'method.html'
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
.number { text-align: right; font-variant-numeric: tabular-nums; }
td.number { white-space: nowrap; }
pre { overflow-x: auto; border: 1px solid var(--rule); padding: 0.6rem; font-size: 0.85rem; }
"""  # noqa: E501


def of_folder(results: Path, verdicts: Sequence[Path] = ()) -> dict[Path, str | None]:
  """The files of a folder's report by path, on the studies that it has lines of and no others.
  The page is first; None means that the file must not be there. `verdicts`: files to put
  verdicts into. Writes nothing. UserError if there is nothing to report or a file is damaged.
  """
  if not results.is_dir():
    raise UserError(
      f'there is no folder {results} (--results): launch.sweep makes it, '
      'with STUDY/runs.jsonl in it'
    )
  if (results / _LINES).is_file():
    return _of_study(results, own.of_lines(results / _LINES, results.resolve().name))
  names = sorted(
    {path.parent.name for file in (_LINES, 'figure.svg') for path in results.glob(f'*/{file}')}
  )
  shipped_here = [name for name in (*STUDIES, *BEYOND) if name in names]
  others = [name for name in names if name not in (*shipped_here, *PILOTS)]
  others = [name for name in others if (results / name / _LINES).is_file()]
  if not names:
    raise UserError(
      f'there is no STUDY/{_LINES} in {results} (--results): '
      'launch.sweep writes a line for each finished run'
    )
  loaded = [studies.load(name, results) for name in shipped_here]
  loaded += [own.of_lines(results / name / _LINES, name) for name in others]
  of_pilots = {name: pilot.blocks(name, results, level=2) for name in pilot.files(results)}
  claims = overview.figure(loaded)
  made: dict[Path, str | None] = {
    results / 'index.html': _page(loaded, of_pilots, claims, (results / EARLIER).is_dir()),
    results / overview.FIGURE: claims or None,
  }
  of_the_paper = any(study.of_the_paper for study in loaded)
  made[results / METHOD] = (
    _html(f'{_TITLE}: the method', [to_html(_method(loaded))]) if of_the_paper else None
  )
  for study in loaded:
    made |= _of_study(results / study.name, study)
  for name in of_pilots:
    made[results / name / 'README.md'] = to_markdown(pilot.blocks(name, results, level=1))
  return made | {file: overview.with_verdicts(file, loaded, results) for file in verdicts}


def of_file(path: str, results: Path) -> dict[Path, str | None]:
  """As `of_folder`, for the one study that a file defines: one of ours, or a user's own."""
  name, file = Path(path).stem, Path(places.study(path))
  ours = Path(shipped.__file__).parent / f'{name}.py'
  if name in (*STUDIES, *BEYOND) and file.is_file() and ours.samefile(file):
    return _of_study(results / name, studies.load(name, results))
  study = own.of_file(path, results)
  return _of_study(results / study.name, study)


def write(made: Mapping[Path, str | None]) -> None:
  """Writes the files that `of_folder` or `of_file` has made, and removes those whose content is
  None. UserError if it cannot.
  """
  for path, content in made.items():
    try:
      if content is None:
        path.unlink(missing_ok=True)
      else:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding='utf-8')
    except OSError as error:
      raise of_system_file(error, path) from error


def _of_study(folder, study):
  return {
    folder / 'README.md': to_markdown(studies.blocks(study)),
    folder / 'figure.svg': study.figure or None,
  }


def _page(
  loaded: Sequence[studies.Study],
  of_pilots: Mapping[str, Sequence[Block]],
  claims: str,
  has_earlier: bool,
) -> str:
  lines = [line for study in loaded for line in study.lines]
  of_the_paper = any(study.of_the_paper for study in loaded)
  title = f'{_TITLE}{_OF_EARLIER}' if _is_earlier(loaded) else _TITLE
  head: list[Block] = [
    Heading(title, 1),
    Text(_INTRODUCTION if of_the_paper else _OF_OTHERS),
    *([Figure(claims, overview.FIGURE, overview.CAPTION), Text(overview.CAPTION)] * bool(claims)),
    *([overview.table(loaded)] if loaded else []),
    *([Link('How a verdict is reached, and what proxies cannot show', METHOD)] * of_the_paper),
    *([Link(_EARLIER_IN_WORDS, f'{EARLIER}/index.html')] * has_earlier),
    Text(studies.runs_in_words(lines) if lines else 'No run has finished yet.', 'All studies:'),
  ]
  sections = {study.name: studies.blocks(study, alone=False) for study in loaded} | of_pilots
  bodies = [
    f'<section id="{identifier(name)}">\n{to_html(found)}\n</section>'
    for name, found in sections.items()
  ]
  return _html(title, [to_html(head), *bodies])


def _is_earlier(loaded: Sequence[studies.Study]) -> bool:
  """Whether the paper's studies here are of the scale before common.LONG."""
  lines = [line for study in loaded if study.of_the_paper for line in study.lines]
  return bool(lines) and all((line.get('scale') or PROXY.name) == PROXY.name for line in lines)


def _method(loaded: Sequence[studies.Study]) -> list[Block]:
  return [
    Heading('How a verdict is reached, and what proxies cannot show', 1),
    List(texts.RULES),
    Text(texts.CAPTION),
    *([] if _is_earlier(loaded) else [Text(texts.OF_MACHINES)]),
    Text(texts.ALL_PROXIES),
  ]


def _html(title: str, bodies: Sequence[str]) -> str:
  return '\n'.join(
    [
      '<!DOCTYPE html>',
      '<html lang="en">',
      '<head>',
      '<meta charset="utf-8">',
      '<meta name="viewport" content="width=device-width, initial-scale=1">',
      f'<title>{html.escape(title)}</title>',
      f'<style>{_STYLE}</style>',
      '</head>',
      '<body>',
      *bodies,
      '</body>',
      '</html>',
      '',
    ]
  )
