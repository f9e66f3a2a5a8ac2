"""What the report says of one study, from its finished runs."""

import dataclasses
import importlib
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from experiments.reports import svg
from experiments.reports.blocks import Block, Code, Figure, Heading, Table, Text
from experiments.studies import common
from experiments.studies.analysis import NONE, Analysis, Results
from experiments.studies.intervals import RULE, UNDECIDED, Comparison, Verdict, verdict
from experiments.sweeps import ledger

ALL_PROXIES = (
  'These are proxies: a few million parameters, and as many tokens as one machine trains in minutes, '
  "where the paper's have 2 billion and 100 billion. The loss is of this repository's own held-out text, not of the "
  "Pile: values do not compare with the paper's, only order and differences do. As compressors all of them are still "
  'behind `xz -9`, which needs 1.81 bits a byte of the same corpus. Models of this size answer the downstream tasks of '
  'the paper no better than by chance, so none is run. What holds here is no proof for the large models, and what does '
  'not hold here may hold there.'
)
_CAPTION = (
  'Means over seeds with 95% intervals. Seeds shift all models alike, which the paired differences of the table '
  'remove: a difference may be clear there though whiskers overlap here.'
)
_OTHER_SEEDS = (
  'Some runs have more seeds than others: their means are not comparable, which shift with the seeds by more than '
  'models may differ; the paired differences are, each over the seeds that both have.'
)
_COMPARISONS = (
  'paired difference',
  'mean',
  '95% interval',
  'seeds',
  'expected',
  'outcome',
  'decides the claim',
  'paper',
)


@dataclasses.dataclass(frozen=True)
class Study:
  """A study as it stands. `missing`: runs and seeds without a line; `diverged`: those whose loss is not finite."""

  name: str
  source: str  # where in the paper, such as 'Table 1'
  claim: str
  lines: tuple[Mapping, ...]
  analysis: Analysis
  verdict: Verdict
  missing: tuple[str, ...]
  diverged: tuple[str, ...]
  figure: str  # SVG; '' until every run has a seed

  @property
  def in_words(self) -> str:
    return (
      f'{self.verdict.outcome}: {self.verdict.reason}'
      if self.verdict.reason
      else self.verdict.outcome
    )


def load(name: str, results: Path) -> Study:
  """From RESULTS/NAME/runs.jsonl, if it is there. UserError if it is damaged."""
  module = importlib.import_module(f'experiments.studies.{name}')
  runs = {run.name: run for run in module.sweep(common.PROXY)}
  lines = [
    line
    for line in ledger.current(f'experiments/studies/{name}.py', results)
    if ledger.has_evaluations(line, runs[line['run']])
  ]
  there = {(line['run'], line['seed']) for line in lines}
  finite = [line for line in lines if _is_finite(line)]
  expected = len(runs) * common.SEEDS
  finished = sum((run, seed) in there for run in runs for seed in range(common.SEEDS))
  analysis = module.analyse(Results(lines))
  source, _, claim = ' '.join(module.__doc__.partition('\n\n')[0].split()).partition(': ')
  claim = claim[0].upper() + claim[1:]
  whole = {line['run'] for line in finite} == runs.keys()
  return Study(
    name=name,
    source=source,
    claim=claim,
    lines=tuple(lines),
    analysis=analysis,
    verdict=verdict(analysis.comparisons, finished, expected),
    missing=_listed({(run, seed) for run in runs for seed in range(common.SEEDS)} - there, runs),
    diverged=_listed(there - {(line['run'], line['seed']) for line in finite}, runs),
    figure=svg.figure(name, f'{source}: {claim}', analysis.panels) if whole else '',
  )


def blocks(study: Study, alone: bool = True) -> list[Block]:
  """Everything about it. `alone`: with what holds of all studies, under a heading of the highest level."""
  analysis = study.analysis
  reason, level = study.verdict.reason, 1 if alone else 2
  parts: list[Block] = [Heading(f'{study.source} ({study.name})', level), Text(study.claim)]
  parts += [
    Text(
      f'{reason[0].upper()}{reason[1:]}.' if reason else '', f'Verdict: {study.verdict.outcome}.'
    )
  ]
  if study.missing:
    parts.append(Text(f'{"; ".join(study.missing)}.', 'Missing:'))
  if study.diverged:
    parts.append(Text(f'{"; ".join(study.diverged)}.', 'Diverged:'))
  if study.figure:
    parts += [Figure(study.figure, 'figure.svg', f'{study.source}: {study.claim}')]
    parts += [Text(_CAPTION)]
  if study.lines:
    parts += [Table(analysis.columns, analysis.rows)]
    parts += [Text(_OTHER_SEEDS)] if _seeds_differ(study.lines) else []
    parts += [Table(_COMPARISONS, tuple(map(_row, analysis.comparisons)))]
    parts += [Text(RULE)] if alone else []
    parts += [Heading('Runs', level + 1), Text(runs_in_words(study.lines))]
  command = f'python -m launch.sweep --sweep=experiments/studies/{study.name}.py\nmake report'
  parts += [Code(command), Heading('What a proxy cannot show', level + 1)]
  return [*parts, Text(analysis.cannot_show), *([Text(ALL_PROXIES)] if alone else [])]


def runs_in_words(lines: Sequence[Mapping]) -> str:
  """How many, of which size, with which code, where and for how long. A run that several studies share counts once."""
  distinct = {(line['config_hash'], line['seed']): line for line in lines}.values()
  machines = sorted({_machine(line['machine']) for line in distinct})
  several = (
    ' These round differently, and a paired difference may be of two of them.'
    if len(machines) > 1
    else ''
  )
  seeds = len({line['seed'] for line in distinct})
  tokens = ' or '.join(f'{count:,}' for count in sorted({line['tokens'] for line in distinct}))
  hours = sum(line['seconds'] for line in distinct) / 3600
  return (
    f'{len(distinct)} runs, {seeds} {"seed" if seeds == 1 else "seeds"}, {tokens} tokens each, {hours:.1f} hours of '
    f'training steps in all. {_commits(distinct)}. '
    f'Machine: {"; ".join(machines)}.{several}'
  )


def _row(comparison: Comparison) -> tuple[str, ...]:
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
    comparison.needs,
    comparison.outcome + (f': {comparison.decides}' if comparison.outcome == UNDECIDED else ''),
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
  """Whether nothing of what is compared has diverged."""
  scores = [line['final'], *line['evaluations'].values()]
  return all(
    score['total']['loss'] is not None and math.isfinite(score['total']['loss']) for score in scores
  )


def _commits(lines: Iterable[Mapping]) -> str:
  """A line has several where its run was interrupted and went on with other code."""
  every = sorted({commit for line in lines for commit in line['commit'].split(', ')})
  dirty = lambda commit: '-dirty' if commit.endswith('-dirty') else ''
  return f'Commit {", ".join(commit[:12] + dirty(commit) for commit in every)}'


def _machine(machine: Mapping[str, str]) -> str:
  return f'{machine["cpu"]}, {machine["device"]}, jax {machine["jax"]}'
