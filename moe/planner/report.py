"""A plan as text for people, and the table of all recorded plans."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from moe import files
from moe.chips import GIB

_HEADER = (
  '| config | machine | mesh | remat | microbatches | fits | peak / reserved / capacity, GiB | '
  'step, s | binds | tokens/s | MFU | MFU, no overlap | FLOPs ÷ accounting | compiled in (CPU) |'
)


def text(record: dict[str, Any]) -> str:
  """A plan as text, a line per fact."""
  gib = lambda n: f'{n / GIB:.2f} GiB'
  peak, reserved, capacity = (
    gib(record[f'{key}_bytes_per_device']) for key in ('peak', 'reserved', 'capacity')
  )
  flops = record['flops_per_step']
  lines = [
    f'{record["config"]} on {record["topology"]} ({record["devices"]} devices), mesh '
    f'{mesh(record)}, remat {record["remat"]}, {record["microbatches"]} microbatches: '
    f'{verdict(record)}',
    f'  memory a device   {peak} at the peak, {reserved} reserved, of {capacity}; '
    'at the peak '
    + ', '.join(f'{name.replace("_", " ")} {gib(size)}' for name, size in record['memory'].items()),
    f'  FLOPs a step      {flops["model"]:.4g} of the model ({flops["model_over_accounting"]:.4f} '
    f'of launch.describe), {flops["recomputed"]:.3g} computed again, {flops["padding"]:.3g} '
    f'padding, {flops["skipped"]:.3g} skipped',
  ]
  if 'refusal' in record:
    lines.append(f'  the compiler      {record["refusal"]}')
  else:
    lines += _performance(record)
  seconds, cpu = record['compile_seconds'], record['compile_cpu_seconds']
  lines.append(
    f'  compiled in       {seconds:.0f} s ({cpu:.0f} s of CPU) and '
    f'{gib(record["compile_resident_bytes"])}'
  )
  return '\n'.join(lines)


def verdict(record: Mapping[str, Any]) -> str:
  """Says that a plan fits, or by how much it does not."""
  if record['fits']:
    return 'fits'
  return f'does not fit, by {record["over_bytes_per_device"] / GIB:.2f} GiB'


def mesh(record: Mapping[str, Any]) -> str:
  """The mesh in words: 'fsdp 2 × expert 4'."""
  return ' × '.join(f'{axis} {size}' for axis, size in record['mesh'].items()) or 'of one device'


def unread(record: Mapping[str, Any]) -> list[str]:
  """A line for each loop that counts once because its number of trips is unknown."""
  return [
    f'  counted once        the loop {loop}, whose trips are not known'
    for loop in record['loops_counted_once']
  ]


def try_record(path: str) -> None:
  """UserError unless `record_plans` can write to `path`. Call it before compiling for minutes."""
  if not path:
    return
  for file in (Path(path), Path(path).with_suffix('.md')):
    files.must_be_file(file)
  files.try_folder(Path(path).parent, 'the record')


def record_plans(
  path: Path,
  new: Sequence[dict[str, Any]],
  table: Callable[[Sequence[dict[str, Any]]], str],
  keys: Sequence[str] = ('config', 'topology'),
) -> None:
  """Adds plans to the file `path`, FILE.jsonl, and writes the `table` of all to FILE.md. A new plan
  replaces an older one with the same `keys`.
  """
  old = (
    [json.loads(line) for line in path.read_text(encoding='utf-8').splitlines()]
    if path.exists()
    else []
  )
  key = lambda record: tuple(record[name] for name in keys)
  records = sorted(({key(r): r for r in (*old, *new)}).values(), key=key)
  path.write_text(''.join(json.dumps(r) + '\n' for r in records), encoding='utf-8')
  path.with_suffix('.md').write_text(table(records), encoding='utf-8')


def table(records: Sequence[dict[str, Any]]) -> str:
  """All plans as Markdown, a row per plan."""
  rows = [_HEADER, '|' + '---|' * (_HEADER.count('|') - 1), *map(_row, records)]
  return (
    '# What the published models take of machines that are not here\n\n'
    '`make plan`: the real training step, compiled for each machine. '
    'Step time is a roofline of public figures (see\n'
    '`moe/chips.py`), with compute, HBM and interconnect overlapped; nothing here has been run.\n\n'
    + '\n'.join(rows)
    + '\n'
  )


def _performance(record):
  total = {}
  for kind, row in record['collective_bytes_per_device'].items():
    total[kind] = ', '.join(f'{axes} {size / 1e9:.3g} GB' for axes, size in row.items())
  times = record['roofline_seconds']
  return [
    *(f'  {kind:<20}{row} sent by a device a step' for kind, row in total.items()),
    f'  HBM               {record["hbm_bytes_per_device"] / 1e9:.4g} GB a device a step',
    *unread(record),
    *_waiting(record),
    f'  step              {record["step_seconds"]:.3g} s, {record["binds"]} binds: '
    + ', '.join(f'{term} {seconds:.3g} s' for term, seconds in times.items())
    + f'; {record["step_seconds_without_overlap"]:.3g} s without overlap',
    f'  speed             {record["tokens_per_second"]:,} tokens/s, MFU {record["mfu"]:.1%} '
    f'({record["mfu_without_overlap"]:.1%} without overlap)',
  ]


def _waiting(record):
  stretch = record['stage_stretch']
  return [
    f'  stages            take {stretch:.3g} times their own work: they wait for one another'
  ] * (stretch > 1)


def _row(record):
  sizes = (record[f'{key}_bytes_per_device'] / GIB for key in ('peak', 'reserved', 'capacity'))
  speed = ['', '', '', '', '']
  if 'step_seconds' in record:
    speed = [
      f'{record["step_seconds"]:.1f}',
      record['binds'],
      f'{record["tokens_per_second"]:,}',
      f'{record["mfu"]:.0%}',
      f'{record["mfu_without_overlap"]:.0%}',
    ]
  cells = [
    record['config'],
    record['topology'],
    mesh(record),
    record['remat'],
    str(record['microbatches']),
    'yes' if record['fits'] else 'no',
    ' / '.join(f'{size:.1f}' for size in sizes),
    *speed,
    f'{record["flops_per_step"]["model_over_accounting"]:.4f}',
    f'{record["compile_seconds"]:.0f} s ({record["compile_cpu_seconds"]:.0f} s)',
  ]
  return '| ' + ' | '.join(cells) + ' |'
