"""What panels of both kinds share (rows.py, lines.py): sizes, round numbers, and text in lines."""

import math
import re
from collections.abc import Iterable
from xml.sax.saxutils import escape

from experiments.studies.analysis import Panel
from experiments.studies.intervals import Interval

RIGHT = 14  # room at the right of what is drawn
LINE = 13  # between lines of text
_CHARACTER = 7.0  # at most, on average, of the figures' text: DejaVu Sans is wide


def ticks(low: float, high: float, most: int = 6) -> list[float]:
  """Round numbers from at most `low` to at least `high`."""
  span = (high - low) or abs(high) or 1.0
  power = 10.0 ** math.floor(math.log10(span / most))
  step = next(factor * power for factor in (1, 2, 5, 10, 20) if span / (factor * power) <= most)
  first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
  return [round(number * step, 12) for number in range(first, max(last, first + 1) + 1)]


def span(panel: Panel) -> tuple[float, float]:
  """From the lowest to the highest value of a panel, intervals included. With `from_zero` from
  there: the interval of what cannot be negative is cut off.
  """
  found = [each for series in panel.series for _, each in series.points if each]
  found += [panel.level[1]] if panel.level and panel.level[1] else []
  low, high = min(each.low for each in found), max(each.high for each in found)
  return (0.0 if panel.from_zero else low), high


def decimals(numbers: Iterable[float]) -> int:
  """How many these round numbers need."""
  return max(len(f'{number:.6f}'.rstrip('0').partition('.')[2]) for number in numbers)


def number(found: Interval, panel: Panel) -> str:
  return signed(found.mean, panel.digits)


def signed(value: float, digits: int) -> str:
  return f'{value:.{digits}f}'.replace('-', '−')


def length(text: str) -> float:
  """How wide a text is at most."""
  return _CHARACTER * len(text)


def title(panel: Panel, x: float) -> str:
  return f'<text class="title" x="{x:g}" y="20">{escape(panel.title)}</text>'


def wrapped(label: str, most: int) -> list[str]:
  """Lines of at most `most` characters, but for single words.
  Words end with a space, or behind an underscore of a run's name.
  """
  lines = ['']
  for word in re.findall(r'[^\s_]*_|[^\s_]+', label):
    gap = '' if not lines[-1] or lines[-1].endswith('_') else ' '
    if lines[-1] and len(lines[-1] + gap + word) > most:
      lines.append('')
      gap = ''
    lines[-1] += gap + word
  return lines
