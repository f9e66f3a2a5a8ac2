"""`python -m launch.plan`: makes the requested plans, prints and records them."""

import functools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from moe.config import Config, mesh_sizes
from moe.errors import UserError
from moe.planner import decode, decode_report, machine, planner, report, search
from moe.planner.compile_decode import Decoding


class Asked(NamedTuple):
  """The flags, by the same names."""

  topology: str | None
  memory_fraction: float | None
  search: bool
  limit: int
  batch: Sequence[str]
  context: int | None
  dtype: str | None
  mesh: str
  baseline: str
  record: str
  as_json: bool


def run(program: str, config: Config, asked: Asked) -> int:
  """Plans 'train' or 'decode', and prints and records the plans. Returns the exit code: 0 if any
  plan fits, else 1. UserError for flags that do not go together.
  """
  if not asked.topology:
    raise UserError('--topology=CHIP:SIZE is required, for example --topology=v5p:4x4x4')
  if asked.search and program == 'decode':
    raise UserError('--search ranks training steps: leave it out, or --program=decode')
  if asked.search and asked.record:
    raise UserError('--record collects plans of configs as they are: leave it out, or --search')
  target = machine.parse(asked.topology)
  if asked.memory_fraction is not None:
    target = machine.with_memory(target, asked.memory_fraction)
  report.try_record(asked.record)
  if program == 'decode':
    records = _decoding(config, target, asked)
  elif asked.search:
    records = _searched(config, target, asked)
  else:
    records = [_training(config, target, asked)]
  return int(not any(record['fits'] for record in records))


def _training(config, target, asked):
  record = planner.plan(config, target)
  if asked.record:
    report.record_plans(Path(asked.record), [record], report.table)
  print(json.dumps(record, indent=2) if asked.as_json else report.text(record))
  return record


def _searched(config, target, asked):
  tell = lambda text: print(text, file=sys.stderr, flush=True)
  ranked = search.searched(config, target, asked.limit or None, tell)
  print(json.dumps(ranked, indent=2) if asked.as_json else '\n'.join(map(report.text, ranked)))
  return ranked


def _decoding(config, target, asked):
  axes, context = mesh_sizes(asked.mesh), asked.context or config.data.seq_len
  dtype, records = asked.dtype or config.model.dtype, []
  for rows in asked.batch:
    if not rows.isdecimal() or int(rows) < 1:
      raise UserError(f'--batch={",".join(asked.batch)}: {rows!r} must be a number of at least 1')
  for rows in map(int, asked.batch):
    decoding = Decoding.of(config, target.num_devices, axes, dtype, rows, context=context)
    records.append(decode.plan(decoding, target))
    if not asked.as_json:
      print(decode_report.text(records[-1]), flush=True)
  if asked.as_json:
    print(json.dumps(records, indent=2))
  if asked.record:
    table = functools.partial(decode_report.table, baseline=asked.baseline)
    report.record_plans(Path(asked.record), records, table, decode_report.KEYS)
  return records
