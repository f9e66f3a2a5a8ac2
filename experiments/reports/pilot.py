"""The report on the pilots, which the studies' common settings come from."""

import importlib
from pathlib import Path

from experiments.reports import study as studies
from experiments.reports.blocks import Block, Code, Heading, Table, Text
from experiments.studies import PILOTS, common
from experiments.studies.analysis import Results
from experiments.sweeps import ledger, plan


def files(results: Path) -> list[str]:
  """The pilots that have lines in a folder."""
  return [name for name in PILOTS if ledger.path(results, name).is_file()]


def blocks(name: str, results: Path, level: int) -> list[Block]:
  """The report on one pilot, from RESULTS/NAME/runs.jsonl, under a heading of this level.
  UserError if the file is damaged.
  """
  pilot = importlib.import_module(f'experiments.studies.{name}')
  file = f'experiments/studies/{name}.py'
  loaded = plan.load(file)
  scale = common.SCALES[loaded.scale]
  lines = ledger.current(file, results, scale)
  tables = [Table(columns, rows) for columns, rows in pilot.tables(Results(lines)) if rows]
  return [
    Heading(pilot.TITLE, level),
    *map(Text, pilot.CHOICE),
    *tables,
    Code(f'{studies.commands(file, loaded, scale, results).splitlines()[0]} --seeds=1'),
  ]
