"""A plan of decoding as text for people, and the table of all recorded ones."""

from collections.abc import Mapping, Sequence
from typing import Any

from moe.chips import GIB
from moe.planner.report import mesh, unread, verdict

# A new record replaces an older one with the same values of these keys.
KEYS = ('config', 'topology', 'dtype', 'batch', 'context')
_HEADER = (
  '| config | machine | mesh | weights | rows × context | fits | '
  'weights + cache + temporaries / capacity, GiB | read a step, GB (least) | tokens/s | '
  '÷ {baseline} |'
)


def text(record: Mapping[str, Any]) -> str:
  """A plan as text, a line per fact."""
  gib = lambda n: f'{n / GIB:.2f} GiB'
  lines = [
    f'{record["config"]} decoding on {record["topology"]} ({record["devices"]} devices), mesh '
    f'{mesh(record)}, {record["dtype"]}, {record["batch"]} rows of {record["context"]}: '
    f'{verdict(record)}',
    f'  memory a device   {gib(record["reserved_bytes_per_device"])} reserved, of '
    f'{gib(record["capacity_bytes_per_device"])}: '
    + ', '.join(f'{name.replace("_", " ")} {gib(size)}' for name, size in record['memory'].items()),
  ]
  if 'refusal' in record:
    lines.append(f'  the compiler      {record["refusal"]}')
  if 'step_seconds' in record:
    lines += _performance(record)
  lines.append(
    f'  compiled in       {record["compile_seconds"]:.0f} s '
    f'({record["compile_cpu_seconds"]:.0f} s of CPU)'
  )
  return '\n'.join(lines)


def _performance(record):
  sent = [
    f'  {kind:<18}{", ".join(f"{axes} {size / 1e6:.3g} MB" for axes, size in row.items())} sent '
    'by a device a step'
    for kind, row in record['collective_bytes_per_device'].items()
  ]
  read, least = (record[f'{key}hbm_bytes_per_device'] for key in ('', 'least_'))
  times = record['roofline_seconds']
  return [
    *sent,
    f'  HBM               {read / 1e9:.4g} GB a device a step, {read / least:.3f} of the least: '
    'chosen weights once, the cache once',
    *unread(record),
    f'  step              {record["step_seconds"] * 1e3:.3g} ms, {record["binds"]} binds: '
    + ', '.join(f'{term} {seconds * 1e3:.3g} ms' for term, seconds in times.items()),
    f'  speed             {record["tokens_per_second"]:,} tokens/s '
    f'({record["tokens_per_second_without_overlap"]:,} without overlap; of the least bytes '
    f'{record["most_tokens_per_second"]:,})',
  ]


def table(records: Sequence[Mapping[str, Any]], baseline: str) -> str:
  """All plans as Markdown, a row per plan. The last column is tokens per second relative to the
  config `baseline` in the same setting: machine, weights' type, rows and context.
  """
  header = _HEADER.format(baseline=baseline)
  of_baseline = {_setting(r): r for r in records if r['config'] == baseline}
  rows = (_row(record, of_baseline.get(_setting(record))) for record in records)
  lines = [header, '|' + '---|' * (header.count('|') - 1), *rows]
  return (
    '# Decoding the published models on machines that are not here\n\n'
    '`make plan`: the programs of `launch.generate`, compiled for each machine. Speed is a '
    'roofline of public\nfigures (see `moe/chips.py`) at balanced routing; none of it has been run.'
    '\n\n' + '\n'.join(lines) + '\n'
  )


def _setting(record):
  return tuple(record[key] for key in KEYS[1:])


def _row(record, baseline):
  speed, ratio = ['', ''], ''
  if 'step_seconds' in record:
    read, least = (record[f'{key}hbm_bytes_per_device'] / 1e9 for key in ('', 'least_'))
    speed = [f'{read:.3g} ({least:.3g})', f'{record["tokens_per_second"]:,}']
  if record['fits'] and baseline and baseline['fits'] and baseline is not record:
    ratio = f'{record["tokens_per_second"] / baseline["tokens_per_second"]:.2f}'
  memory = record['memory']
  temporaries = max(memory['temporaries'], memory['temporaries_of_prefill'])
  parts = ' + '.join(
    f'{size / GIB:.2f}' for size in (memory['weights'], memory['cache'], temporaries)
  )
  cells = [
    record['config'],
    record['topology'],
    mesh(record),
    record['dtype'],
    f'{record["batch"]} × {record["context"]}',
    'yes' if record['fits'] else 'no',
    f'{parts} / {record["capacity_bytes_per_device"] / GIB:.2f}',
    *speed,
    ratio,
  ]
  return '| ' + ' | '.join(cells) + ' |'
