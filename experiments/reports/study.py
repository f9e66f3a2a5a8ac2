"""The report on one study, from its finished runs."""

import dataclasses
import importlib
import math
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from experiments.reports import svg, texts
from experiments.reports.blocks import Block, Code, Figure, Heading, List, Table, Text
from experiments.studies import BEYOND, STUDIES, common
from experiments.studies.analysis import NONE, Analysis, Results
from experiments.studies.common import Run, Scale
from experiments.studies.intervals import detectable
from experiments.studies.verdicts import (
  UNDECIDED,
  Comparison,
  Verdict,
  outcomes,
  verdict,
  why_open,
)
from experiments.sweeps import ledger, plan
from moe.errors import UserError

_OF_THE_PAPER = ('paper', 'Pile loss (paper)')
_COMPARISONS = (
  'paired difference',
  'mean',
  '95% interval',
  'seeds',
  'detectable',
  'expected',
  'outcome',
  'decides the claim',
  'paper',
)


_RESULTS = Path('experiments/results')


@dataclasses.dataclass(frozen=True)
class Study:
  """A study as it stands. `missing`: runs and seeds without a line; `diverged`:
  those whose loss is not finite.
  """

  name: str
  source: str  # where in the paper, such as 'Table 1'; '' for a user's own study
  claim: str  # '' where none is stated
  lines: tuple[Mapping, ...]
  analysis: Analysis
  verdict: Verdict | None  # None without comparisons to decide by
  missing: tuple[str, ...]
  diverged: tuple[str, ...]
  figure: str  # SVG; '' until every run has a seed
  commands: str  # those that make its lines and this report

  @property
  def of_the_paper(self) -> bool:
    return self.name in STUDIES

  @property
  def title(self) -> str:
    return self.source or self.name

  @property
  def in_words(self) -> str:
    if self.verdict is None:
      return ''
    reason = self.verdict.reason
    return f'{self.verdict.outcome}: {reason}' if reason else self.verdict.outcome


def load(name: str, results: Path) -> Study:
  """A study of this package, from RESULTS/NAME/runs.jsonl if that exists.
  UserError if it is damaged.
  """
  file = f'experiments/studies/{name}.py'
  loaded = plan.load(file)
  scale = ledger.scale(ledger.path(results, name), common.SCALES[loaded.scale])
  runs = {run.name: run for run in loaded.sweep(scale)}
  lines = with_evaluations(ledger.current(file, results, scale), runs)
  there = {(line['run'], line['seed']) for line in lines}
  seeds = loaded.seeds_at(scale)
  finished = sum((run, seed) in there for run in runs for seed in seeds)
  analysis = loaded.analyse(Results(lines))
  return made(
    name,
    loaded.source,
    loaded.claim,
    lines,
    analysis,
    verdict(analysis.comparisons, finished, len(runs) * len(seeds)),
    runs,
    seeds,
    commands(file, loaded, scale, results),
  )


def commands(file: str, loaded: plan.Study, scale: Scale, results: Path) -> str:
  """The commands that make a study's lines and its report, with the flags that are not defaults."""
  into = '' if results == _RESULTS else ' ' + shlex.quote(f'--results={results}')
  report = f'python -m launch.report{into}' if into else 'make report'
  return f'python -m launch.sweep --sweep={file}{at(loaded, scale)}{into}\n{report}'


def at(loaded: plan.Study, scale: Scale) -> str:
  """The flag that sets a scale, with a space before it; '' for the study's own scale."""
  return '' if scale.name == loaded.scale else f' --scale={scale.name}'


def with_evaluations(lines: Iterable[Mapping], runs: Mapping[str, Run]) -> list[Mapping]:
  """The lines that have all evaluations and measures that their runs ask for now.
  UserError for a line without its loss.
  """
  kept = [line for line in lines if ledger.has_evaluations(line, runs[line['run']])]
  for line in kept:
    check_has_loss(line)
  return kept


def check_has_loss(line: Mapping) -> None:
  wanted = [line.get('final'), *(line.get('evaluations') or {}).values()]
  if not all(each and {'loss', 'bits_per_byte'} <= each.get('total', {}).keys() for each in wanted):
    raise UserError(
      f'the line of {line["run"]!r}, seed {line["seed"]}, in runs.jsonl lacks a loss: delete it, '
      'and launch.sweep writes it again'
    )


def made(
  name: str,
  source: str,
  claim: str,
  lines: Sequence[Mapping],
  analysis: Analysis,
  found: Verdict | None,
  runs: Collection[str],
  seeds: Collection[int],
  commands: str,
) -> Study:
  """The study of these lines. It should have all `runs`, in this order, for all `seeds`."""
  there = {(line['run'], line['seed']) for line in lines}
  finite = [line for line in lines if _is_finite(line)]
  # A panel whose runs have all diverged has nothing to draw.
  panels = [
    panel
    for panel in analysis.panels
    if any(found for series in panel.series for _, found in series.points)
  ]
  whole = {line['run'] for line in lines} == set(runs)
  described = f'{source}: {claim}' if source else claim or name
  return Study(
    name=name,
    source=source,
    claim=claim,
    lines=tuple(lines),
    analysis=analysis,
    verdict=found,
    missing=_listed({(run, seed) for run in runs for seed in seeds} - there, runs),
    diverged=_listed(there - {(line['run'], line['seed']) for line in finite}, runs),
    figure=svg.figure(name, described, panels) if whole and panels else '',
    commands=commands,
  )


def blocks(study: Study, alone: bool = True) -> list[Block]:
  """The blocks that report a study. `alone`: on a page of its own, with a heading of the highest
  level and with what holds for all studies.
  """
  analysis, level = study.analysis, 1 if alone else 2
  title = f'{study.source} ({study.name})' if study.source else study.name
  parts: list[Block] = [Heading(title, level), *([Text(study.claim)] if study.claim else [])]
  if study.verdict:
    reason = study.verdict.reason
    reason = f'{reason[0].upper()}{reason[1:]}.' if reason else ''
    parts.append(Text(reason, f'Verdict: {study.verdict.outcome}.'))
  if study.missing:
    parts.append(Text(f'{"; ".join(study.missing)}.', 'Missing:'))
  if study.diverged:
    parts.append(Text(f'{"; ".join(study.diverged)}.', 'Diverged:'))
  if study.figure:
    parts += [
      Figure(study.figure, 'figure.svg', f'{study.title}: {study.claim}'.removesuffix(': '))
    ]
    parts += [Text(texts.CAPTION)]
  if study.lines:
    parts += [_table(analysis.columns, analysis.rows)]
    parts += [Text(texts.OTHER_SEEDS)] if _seeds_differ(filter(_is_finite, study.lines)) else []
    if analysis.comparisons:
      decided = zip(analysis.comparisons, outcomes(analysis.comparisons))
      parts += [_table(_COMPARISONS, tuple(_row(*each) for each in decided))]
    parts += _measured(study.name, level + 1) if alone else []
    parts += [Heading('Runs', level + 1), Text(runs_in_words(study.lines))]
  parts += [Code(study.commands)] if study.commands else []
  if analysis.cannot_show:
    parts += [Heading('What a proxy cannot show', level + 1), Text(analysis.cannot_show)]
  parts += [Text(texts.ALL_PROXIES)] if alone and study.of_the_paper else []
  if alone and study.lines and analysis.comparisons:
    parts += [Heading('How a verdict is reached', level + 1), List(texts.RULES)]
  return parts


def _measured(name: str, level: int) -> list[Block]:
  """What a study's module says of itself, without its title and its command; [] for a user's own
  study.
  """
  if name not in (*STUDIES, *BEYOND):
    return []
  said = importlib.import_module(f'experiments.studies.{name}').__doc__
  _, _, *paragraphs = said.strip().split('\n\n')
  return [Heading('What is measured', level), *map(_paragraph, paragraphs)]


def _paragraph(text: str) -> Block:
  """Indented lines are a table."""
  lines = text.split('\n')
  if all(line.startswith('  ') for line in lines):
    return Code('\n'.join(line.removeprefix('  ') for line in lines))
  return Text(' '.join(lines))


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
  """The table without the columns for the paper's values that have none."""
  kept = [
    column
    for column, name in enumerate(columns)
    if name not in _OF_THE_PAPER or any(row[column] not in ('', NONE) for row in rows)
  ]
  of_kept = lambda cells: tuple(cells[column] for column in kept)
  return Table(of_kept(columns), tuple(map(of_kept, rows)))


def runs_in_words(lines: Sequence[Mapping]) -> str:
  """A sentence or two on the runs: their number, seeds, tokens, hours, commits and machines.
  A run that several studies share counts once.
  """
  distinct = {(line['config_hash'], line['seed']): line for line in lines}.values()
  # A run that was not scored names no device; another run with the same CPU may name it.
  known = {line['machine']['cpu'] for line in distinct if line['machine']['device'] != 'unknown'}
  machines = sorted(
    {
      _machine(line['machine'])
      for line in distinct
      if line['machine']['device'] != 'unknown' or line['machine']['cpu'] not in known
    }
  )
  several = (
    ' These round differently, and the two runs of a paired difference may be from different ones.'
    if len(machines) > 1
    else ''
  )
  seeds = len({line['seed'] for line in distinct})
  few, *more = sorted({line['tokens'] for line in distinct})
  tokens = f'{few:,} to {more[-1]:,}' if more else f'{few:,}'
  hours = sum(line['seconds'] for line in distinct) / 3600
  return (
    f'{len(distinct)} runs, {seeds} {"seed" if seeds == 1 else "seeds"}, {tokens} tokens each, '
    f'{hours:.1f} hours of training steps in all. {_commits(distinct)}. Machine: '
    f'{"; ".join(machines)}.{several}'
  )


def _row(comparison: Comparison, outcome: str) -> tuple[str, ...]:
  found, digits = comparison.interval, comparison.digits
  limits = (
    NONE
    if found is None or found.half is None
    else f'{found.low:.{digits}f} to {found.high:.{digits}f}'
  )
  return (
    comparison.what,
    NONE if found is None else f'{found.mean:.{digits}f}',
    limits,
    str(len(comparison.values)),
    NONE if not found or not found.half else f'{detectable(found.sd, found.n):.{digits}f}',
    comparison.needs,
    outcome + (f': {why_open(comparison)}' if outcome == UNDECIDED else ''),
    comparison.role.value,
    NONE if comparison.paper is None else f'{comparison.paper:.3f}',
  )


def _listed(which: Collection[tuple[str, int]], runs: Iterable[str]) -> tuple[str, ...]:
  """Runs and seeds in words, in the order of the study."""
  seeds = {run: sorted(seed for name, seed in which if name == run) for run in runs}
  return tuple(
    f'{run} (seed {", ".join(map(str, of_one))})' for run, of_one in seeds.items() if of_one
  )


def _seeds_differ(lines: Iterable[Mapping]) -> bool:
  seeds = {}
  for line in lines:
    seeds.setdefault(line['run'], set()).add(line['seed'])
  return len(set(map(frozenset, seeds.values()))) > 1


def _is_finite(line: Mapping) -> bool:
  """Whether every loss that may be compared is finite: the final one and those of evaluations."""
  scores = [line['final'], *line['evaluations'].values()]
  return all(
    score['total']['loss'] is not None and math.isfinite(score['total']['loss']) for score in scores
  )


def _commits(lines: Iterable[Mapping]) -> str:
  """The commits of all lines, in words.
  A line has several if its run was interrupted and went on with other code.
  """
  every = sorted({commit for line in lines for commit in line['commit'].split(', ')})
  dirty = lambda commit: '-dirty' if commit.endswith('-dirty') else ''
  return f'Commit {", ".join(commit[:12] + dirty(commit) for commit in every)}'


def _machine(machine: Mapping[str, str]) -> str:
  return f'{machine["cpu"]}, {machine["device"]}, jax {machine["jax"]}'
