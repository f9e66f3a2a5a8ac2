"""The records of a device as Markdown, for docs/kernels.md."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from experiments.benchmarks.device.records import NOT_MEASURED
from moe.errors import UserError, of_file


def read(path: str) -> list[dict]:
  """The records of a file that --suite=device --format=json wrote. UserError if it is not one."""
  try:
    rows = json.loads(Path(path).read_text(encoding='utf-8'))
    table(rows)
  except OSError as error:
    raise of_file(error, path) from error
  except (ValueError, LookupError, TypeError) as error:
    raise UserError(
      f'--read={path} is not what launch.benchmark --suite=device --format=json writes'
    ) from error
  return rows


def table(rows: Sequence[dict]) -> str:
  """Tables of what was measured, and lists of what was not."""
  lines = [
    f'{rows[0]["device"]}, jax {rows[0]["jax"]}, commit {rows[0]["commit"]}. Beside a rate its '
    "share of the chip's peak.",
    '',
  ]
  errors = [row for row in rows if 'error' in row]
  ratios = [row for row in rows if row['ratio_median'] is not None and 'error' not in row]
  others = [row for row in rows if 'ms' in row and row['ratio_median'] is None]
  lines += _columns('op', 'error ÷ tolerance', errors, _ratio)
  lines += _columns('÷', 'time ratio (min–max)', ratios, _spread)
  lines += _columns('alone', 'tokens/s', others, _tokens)
  for key, title in NOT_MEASURED.items():
    said = [f'- {row["name"]}: {row[key]}' for row in rows if key in row]
    lines += [f'{title}:', '', *said, ''] if said else []
  return '\n'.join(lines).strip()


def _columns(
  first: str, second: str, rows: Sequence[dict], value: Callable[[dict], str]
) -> Iterator[str]:
  if not rows:
    return
  yield f'| {first} | {second} | ms | TFLOP/s | GB/s |'
  yield '|---|---|---|---|---|'
  for row in rows:
    flops, moved = _rate(row, 'flops', 1e12), _rate(row, 'bytes', 1e9)
    yield f'| {row["name"]} | {value(row)} | {_short(row["ms"])} | {flops} | {moved} |'
  yield ''


def _rate(row, what, unit):
  rate, share = row[f'{what}_per_second'], row[f'share_of_peak_{what}']
  if rate is None:
    return ''
  return _short(rate / unit) + ('' if share is None else f' ({share:.0%})')


def _short(number):
  return f'{number:,.0f}' if number >= 100 else f'{number:.3g}'


def _ratio(row):
  mark = '**' if row['ratio_median'] > row['bar'] else ''
  return f'{mark}{_short(row["ratio_median"])}{mark}'


def _spread(row):
  return f'{row["ratio_median"]:.2f} ({row["ratio_min"]:.2f}–{row["ratio_max"]:.2f})'


def _tokens(row):
  return f'{row["tokens_per_second"]:,.0f}' if 'tokens_per_second' in row else ''
