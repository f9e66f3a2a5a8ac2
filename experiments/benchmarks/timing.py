"""Timing two functions in turn, and the shares of a whole."""

import statistics
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

from moe.metrics.profile import Row


class Part(NamedTuple):
  """A part of a whole. `run` runs it alone and waits for its end."""

  name: str
  run: Callable[[], None]
  flops: int  # of matrix products, in one run
  times: int = 1  # how often the whole contains it


def compare(
  name: str,
  a: Callable[[], None],
  b: Callable[[], None],
  rounds: int,
  tokens: int,
  bar: float | None = None,
) -> dict:
  """Times a and b in turn, A B A B …, after one warm-up of both;
  the ratio is time a ÷ time b, pair by pair.
  """
  seconds = _rounds(name, [a, b], rounds)
  return {
    'name': name,
    **_spread([first / second for first, second in seconds]),
    'rounds': rounds,
    'bar': bar,
    'tokens_per_second_median': [
      tokens / statistics.median(side) for side in zip(*seconds, strict=True)
    ],
  }


def breakdown(
  name: str, whole: Callable[[], None], parts: list[Part], peak: Part, rounds: int
) -> list[dict]:
  """Each part's share of the whole, timed in turn with it,
  and its FLOP/s beside those of a big product, `peak`.

  Shares need not add up to one: alone, a part finds its operands
  elsewhere in memory than inside the whole.
  """
  seconds = _rounds(name, [whole, peak.run, *(part.run for part in parts)], rounds)
  rate = lambda part, column: part.flops / statistics.median(row[column] for row in seconds) / 1e9
  return [
    {
      'name': f'{name}: {part.name}',
      **_spread([part.times * row[column] / row[0] for row in seconds]),
      'rounds': rounds,
      'bar': None,
      'gflops_per_second': rate(part, column),
      'peak_gflops_per_second': rate(peak, 1),
    }
    for column, part in enumerate(parts, start=2)
  ]


def by_scope(name: str, profiles: list[list[Row]]) -> list[dict]:
  """Each named scope's share of a step's compute time, forward and backward apart, over several
  profiles. The scopes cover the whole step.
  """
  shares, milliseconds = {}, {}
  for rows in profiles:
    for row in rows:
      key = f'{name}: {row.scope or "no scope"}, {row.direction}'
      shares.setdefault(key, []).append(row.share)
      milliseconds.setdefault(key, []).append(row.milliseconds)
  found = [
    {
      'name': key,
      **_spread(shares[key]),
      'rounds': len(profiles),
      'bar': None,
      'core_milliseconds_a_step': statistics.median(milliseconds[key]),
    }
    for key in shares
  ]
  return sorted(found, key=lambda row: -row['ratio_median'])


def is_over(row: dict) -> bool:
  """Whether a row is over its bar, or failed."""
  return 'failed' in row or (row['bar'] is not None and row['ratio_median'] > row['bar'])


def table(rows: list[dict]) -> str:
  """The rows as a table for people."""
  lines = [f'{"":<58}{"time ratio":>11}{"min–max":>14}{"bar":>6}{"tokens/s":>18}']
  for row in rows:
    spread = f'{row["ratio_min"]:.2f}–{row["ratio_max"]:.2f}'
    bar = '' if row['bar'] is None else f'{row["bar"]:.2f}'
    if 'tokens_per_second_median' in row:
      end = ' / '.join(f'{speed:,.0f}' for speed in row['tokens_per_second_median'])
    elif 'core_milliseconds_a_step' in row:
      end = f'{row["core_milliseconds_a_step"]:.1f} core-ms'
    else:
      end = f'{row["gflops_per_second"]:.0f} of {row["peak_gflops_per_second"]:.0f} GF/s'
    lines.append(f'{row["name"]:<58}{row["ratio_median"]:>11.2f}{spread:>14}{bar:>6}{end:>18}')
  return '\n'.join(lines)


def _rounds(name, functions, rounds):
  """Seconds of every function, round by round, after a round of warm-up.
  Each function must wait for its own end.
  """
  seconds = []
  for number in range(rounds + 1):
    row = []
    for function in functions:
      began = time.perf_counter()
      function()
      row.append(time.perf_counter() - began)
    if number:
      seconds.append(row)
    print(f'{name}: round {number}/{rounds}', file=sys.stderr, flush=True)
  return seconds


def _spread(ratios):
  return {
    'ratio_median': statistics.median(ratios),
    'ratio_min': min(ratios),
    'ratio_max': max(ratios),
  }
