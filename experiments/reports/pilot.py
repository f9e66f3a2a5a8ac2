"""What the report says of the pilot (experiments/studies/pilot.py),
which the studies' common settings come from.
"""

from pathlib import Path

from experiments.reports.blocks import Block, Code, Heading, Table, Text
from experiments.studies import pilot
from experiments.studies.analysis import Results
from experiments.sweeps import ledger

NAME = 'pilot'


def blocks(results: Path, level: int) -> list[Block]:
  """From RESULTS/pilot/runs.jsonl, under a heading of this level.
  UserError if the file is damaged.
  """
  lines = ledger.current(f'experiments/studies/{NAME}.py', results)
  tables = [Table(columns, rows) for columns, rows in pilot.tables(Results(lines)) if rows]
  return [
    Heading('The pilot: what all runs share, and how it was chosen', level),
    *map(Text, pilot.CHOICE),
    *tables,
    Code(f'python -m launch.sweep --sweep=experiments/studies/{NAME}.py --seeds=1'),
  ]
