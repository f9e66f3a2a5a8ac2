"""What both kinds of panel (rows.py, lines.py) share: sizes, round numbers, and wrapped text."""

import math
import re
from collections.abc import Iterable
from xml.sax.saxutils import escape

from experiments.studies.analysis import Panel
from experiments.studies.intervals import Interval

RIGHT = 14  # pixels of margin at the right
LINE = 13  # pixels from one line of text to the next
_CHARACTER = 7.0  # the most pixels a character takes on average: DejaVu Sans is wide


def ticks(low: float, high: float, most: int = 6) -> list[float]:
  """Round numbers for ticks: the first is at most `low`, the last at least `high`."""
  span = (high - low) or abs(high) or 1.0
  power = 10.0 ** math.floor(math.log10(span / most))
  step = next(factor * power for factor in (1, 2, 5, 10, 20) if span / (factor * power) <= most)
  first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
  return [round(number * step, 12) for number in range(first, max(last, first + 1) + 1)]


def span(panel: Panel) -> tuple[float, float]:
  """The lowest and the highest value of a panel, intervals and expected bounds included.
  With `from_zero` the lowest is 0: an interval of a quantity that cannot be negative is cut off
  there.
  """
  found = [each for series in panel.series for _, each in series.points if each]
  found += [panel.level[1]] if panel.level and panel.level[1] else []
  bounds = [end for ends in panel.expected for end in ends if math.isfinite(end)]
  low, high = min(each.low for each in found), max(each.high for each in found)
  return (0.0 if panel.from_zero else min([low, *bounds])), max([high, *bounds])


def decimals(numbers: Iterable[float]) -> int:
  """How many decimals these round numbers need."""
  return max(len(f'{number:.6f}'.rstrip('0').partition('.')[2]) for number in numbers)


def number(found: Interval, panel: Panel) -> str:
  return signed(found.mean, panel.digits)


def signed(value: float, digits: int) -> str:
  """A number with a minus sign if it is negative once it is rounded."""
  return f'{round(value, digits) + 0.0:.{digits}f}'.replace('-', '−')


def length(text: str) -> float:
  """The largest width of a text, in pixels."""
  return _CHARACTER * len(text)


def title(panel: Panel, x: float) -> str:
  return f'<text class="title" x="{x:g}" y="20">{escape(panel.title)}</text>'


def wrapped(label: str, most: int) -> list[str]:
  """Lines of at most `most` characters; only a single word may be longer.
  Words end at a space, or after an underscore of a run's name.
  """
  lines = ['']
  for word in re.findall(r'[^\s_]*_|[^\s_]+', label):
    gap = '' if not lines[-1] or lines[-1].endswith('_') else ' '
    if lines[-1] and len(lines[-1] + gap + word) > most:
      lines.append('')
      gap = ''
    lines[-1] += gap + word
  return lines
