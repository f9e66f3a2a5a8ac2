"""The report on a user's own study: by its analyse(), or else a table that fits any study."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.reports import study as studies
from experiments.reports.study import Study
from experiments.studies import common
from experiments.studies.analysis import (
  HELD_OUT_LOSS,
  LOSS_AXIS,
  NONE,
  Analysis,
  Results,
  dots,
  shown,
  sizes,
)
from experiments.studies.intervals import difference
from experiments.studies.verdicts import Comparison, verdict
from experiments.sweeps import ledger, plan
from moe.errors import UserError

_MOST_ROWS = 40  # with more of them there is no figure


def of_file(path: str, results: Path) -> Study:
  """The study that a file defines, with its lines in RESULTS/STUDY/runs.jsonl.
  UserError if there are none.
  """
  loaded = plan.load(path)
  file = ledger.path(results, loaded.name)
  scale = ledger.scale(file, common.SCALES[loaded.scale])
  runs = {run.name: run for run in plan.runs(loaded, scale)}
  # Lines of the configs as they are now; of the last ones if --config flags changed them.
  lines = ledger.current(path, results, scale) or of_last_configs(file)
  lines = studies.with_evaluations([line for line in lines if line['run'] in runs], runs)
  there = {(line['run'], line['seed']) for line in lines}
  seeds = loaded.seeds_at(scale) if loaded.seeds else sorted({seed for _, seed in there})
  where = shlex.join([f'--sweep={path}', f'--results={results}'])
  commands = (
    f'python -m launch.sweep {where}{studies.at(loaded, scale)}\npython -m launch.report {where}'
  )
  found = None
  if loaded.analyse:
    analysis = plan.asked(loaded.path, lambda: loaded.analyse(Results(lines)))
    if not isinstance(analysis, Analysis):
      raise UserError(
        f'analyse() of the study {loaded.name} must return an Analysis '
        '(experiments/studies/analysis.py)'
      )
    if analysis.comparisons:
      finished = sum((run, seed) in there for run in runs for seed in seeds)
      found = verdict(analysis.comparisons, finished, len(runs) * max(len(seeds), 1))
  else:
    analysis = by_default(lines, list(runs))
  return studies.made(
    loaded.name, loaded.source, loaded.claim, lines, analysis, found, runs, seeds, commands
  )


def of_lines(file: Path, name: str) -> Study:
  """A study of which only its lines are known. UserError if there are none."""
  lines = of_last_configs(file)
  runs = list(dict.fromkeys(line['run'] for line in lines))
  seeds = sorted({line['seed'] for line in lines})
  analysis = by_default(lines, runs)
  return studies.made(name, '', '', lines, analysis, None, runs, seeds, commands='')


def of_last_configs(file: Path) -> list[dict]:
  """The lines of each run's last config in a file; lines of earlier configs are compared with
  nothing. UserError if there are none.
  """
  every = list(ledger.read(file).values())
  if not every:
    raise UserError(f'there is no line in {file}: launch.sweep writes one for each finished run')
  last = {line['run']: line['config_hash'] for line in every}
  lines = [line for line in every if line['config_hash'] == last[line['run']]]
  ledger.check_data(file, lines)
  complete = [dict.fromkeys(ledger.FIELDS) | line for line in lines]
  for line in complete:
    studies.check_has_loss(line)
  return complete


def by_default(lines: Sequence[Mapping], runs: Sequence[str]) -> Analysis:
  """Loss of every run and evaluation, its difference from the first run within seeds, MaxVio and
  parameters.
  """
  results = Results(lines)
  entries = [
    (run, evaluation)
    for run in runs
    for evaluation in ('', *(results.of(run, 'evaluations') or ()))
  ]
  first = results.loss(runs[0])
  columns = (
    *('run', 'parameters', 'activated', 'seeds', HELD_OUT_LOSS, '95% interval', 'bits/byte'),
    *(f'minus {runs[0]}', '95% interval of it', 'MaxVio'),
  )
  rows = tuple(_row(results, run, evaluation, first) for run, evaluation in entries)
  losses = {_label(entry): results.loss(*entry) for entry in entries}
  panel = dots('Held-out loss', LOSS_AXIS, losses)
  return Analysis(columns, rows, (), (panel,) if len(entries) <= _MOST_ROWS else (), '')


def _row(results, run, evaluation, first):
  loss = results.loss(run, evaluation)
  beside = Comparison('', difference(loss, first)).interval
  limits = (
    NONE if beside is None or beside.half is None else f'{beside.low:.4f} to {beside.high:.4f}'
  )
  max_vio = results.values(run, lambda line: (line['max_vio'] or {}).get('last_tenth'))
  return (
    _label((run, evaluation)),
    *(('', '') if evaluation else sizes(results, run)),
    *shown(loss),
    shown(results.score(run, 'bits_per_byte', evaluation), 3)[1],
    NONE if beside is None else f'{beside.mean:.4f}',
    limits,
    '' if evaluation else shown(max_vio, 3)[1],
  )


def _label(entry):
  return ', '.join(filter(None, entry))
