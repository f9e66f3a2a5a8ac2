"""A figure as SVG text, of the panels of an analysis, two a row.

Written out here, without a plotting library: the bytes then depend on the numbers alone, not on a
library's version or on fonts, and one file serves light and dark, since its colours are CSS.
"""

import math
import re
from collections.abc import Iterator, Sequence
from xml.sax.saxutils import escape

from experiments.studies.analysis import Panel, Series
from experiments.studies.intervals import Interval

_WIDTH, _HEIGHT = 460, 300  # of a panel
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 52, 56  # room around its axes
_LINE = 13  # between lines of text
_SUPERSCRIPT = str.maketrans('0123456789-', '⁰¹²³⁴⁵⁶⁷⁸⁹⁻')

_STYLE = """
.figure { font: 11px system-ui, 'DejaVu Sans', sans-serif; --ink: #1f2328; --soft: #656d76; --grid: #d8dee4;
  --page: #ffffff; --first: #1f6feb; --second: #bc4c00; --paper: #afb8c1; }
@media (prefers-color-scheme: dark) { .figure { --ink: #e6edf3; --soft: #9198a1; --grid: #30363d; --page: #0d1117;
  --first: #58a6ff; --second: #f0883e; --paper: #6e7681; } }
.figure text { fill: var(--ink); stroke: none; }
.figure .soft { fill: var(--soft); }
.figure .small { font-size: 9.5px; }
.figure .title { font-weight: 600; font-size: 13px; }
.figure .page { fill: var(--page); }
.figure .grid { stroke: var(--grid); }
.figure .axis, .figure .whisker { stroke: var(--ink); }
.figure .level { stroke: var(--soft); stroke-dasharray: 5 4; }
.figure .line { fill: none; stroke-width: 2; }
.figure .line.paper { stroke-dasharray: 2 3; }
.figure .stroke0 { stroke: var(--first); } .figure .stroke1 { stroke: var(--second); }
.figure .fill0 { fill: var(--first); } .figure .fill1 { fill: var(--second); }
.figure .bar.paper { fill: var(--paper); }
"""  # noqa: E501


def figure(name: str, description: str, panels: Sequence[Panel]) -> str:
  """The whole file. `name`: of its id; `description`: for those who cannot see it."""
  columns = min(len(panels), 2)
  width, height = columns * _WIDTH, math.ceil(len(panels) / columns) * _HEIGHT
  parts = [
    f'<svg xmlns="http://www.w3.org/2000/svg" id="figure-{identifier(name)}" class="figure" '
    f'role="img" viewBox="0 0 {width} {height}" width="{width}" height="{height}">',
    f'<title>{escape(description)}</title>',
    f'<style>{_STYLE}</style>',
    f'<rect class="page" width="{width}" height="{height}"/>',
  ]
  for number, panel in enumerate(panels):
    x, y = number % columns * _WIDTH, number // columns * _HEIGHT
    parts += [f'<g transform="translate({x} {y})">', *_Axes(panel).draw(), '</g>']
  return '\n'.join([*parts, '</svg>', ''])


def identifier(name: str) -> str:
  """A name as an id of HTML and SVG."""
  return re.sub(r'[^\w-]', '_', name)


def ticks(low: float, high: float, most: int = 6) -> list[float]:
  """Round numbers from at most `low` to at least `high`."""
  span = (high - low) or abs(high) or 1.0
  power = 10.0 ** math.floor(math.log10(span / most))
  step = next(factor * power for factor in (1, 2, 5, 10, 20) if span / (factor * power) <= most)
  first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
  return [round(number * step, 12) for number in range(first, max(last, first + 1) + 1)]


class _Axes:
  """A panel's scales, and its parts as elements."""

  def __init__(self, panel: Panel):
    self._panel = panel
    found = [each for series in panel.series for _, each in series.points if each]
    found += [panel.level[1]] if panel.level and panel.level[1] else []
    low, high = min(each.low for each in found), max(each.high for each in found)
    # Bars whose axis does not start at 0 say so; the lowest keeps some height.
    below = 0.25 * ((high - low) or abs(high) or 1.0) if panel.categories else 0.0
    # The interval of what cannot be negative is cut off at zero.
    low = 0.0 if panel.from_zero else low - below
    self._ticks = ticks(low, high)
    xs = [x for series in panel.series for x, each in series.points if each]
    if panel.categories:
      self._x_range = (-0.5, len(panel.categories) - 0.5)
    elif panel.log_x:
      self._x_range = (math.log10(min(xs)) - 0.1, math.log10(max(xs)) + 0.1)
    else:
      margin = 0.06 * ((max(xs) - min(xs)) or 1.0)
      self._x_range = (min(xs) - margin, max(xs) + margin)

  def draw(self) -> Iterator[str]:
    yield f'<text class="title" x="{_LEFT}" y="20">{escape(self._panel.title)}</text>'
    yield from self._y_axis()
    yield from self._categories() if self._panel.categories else self._x_axis()
    yield from self._level()
    for number, series in enumerate(self._panel.series):
      yield from self._bars(series) if self._panel.categories else self._line(number, series)
    if len(self._panel.series) > 1:
      yield from self._legend()

  def _x(self, value: float) -> float:
    low, high = self._x_range
    value = math.log10(value) if self._panel.log_x else value
    return _LEFT + (value - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

  def _y(self, value: float) -> float:
    low, high = self._ticks[0], self._ticks[-1]
    return _HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

  def _y_axis(self):
    digits = max(_decimals(tick) for tick in self._ticks)
    for tick in self._ticks:
      y = self._y(tick)
      yield f'<path class="grid" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>'
      yield (
        f'<text class="soft" x="{_LEFT - 6}" y="{y + 4:.1f}" '
        f'text-anchor="end">{tick:.{digits}f}</text>'
      )
    cut = self._panel.categories and self._ticks[0] != 0
    label = self._panel.y_axis + (f' (bars start at {self._ticks[0]:.{digits}f})' if cut else '')
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    yield (
      f'<text x="14" y="{middle}" text-anchor="middle" transform="rotate(-90 14 '
      f'{middle})">{escape(label)}</text>'
    )
    yield f'<path class="axis" d="M{_LEFT} {_HEIGHT - _BOTTOM}H{_WIDTH - _RIGHT}"/>'

  def _x_axis(self):
    for value, label in self._x_ticks():
      x = self._x(value)
      yield f'<path class="axis" d="M{x:.1f} {_HEIGHT - _BOTTOM}v4"/>'
      yield (
        f'<text class="soft" x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 17}" '
        f'text-anchor="middle">{label}</text>'
      )
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    yield (
      f'<text x="{middle}" y="{_HEIGHT - 16}" '
      f'text-anchor="middle">{escape(self._panel.x_axis)}</text>'
    )

  def _x_ticks(self):
    if not self._panel.log_x:  # the points themselves: they are few
      xs = sorted({x for series in self._panel.series for x, _ in series.points})
      return [(x, f'{x:g}') for x in xs]
    low, high = self._x_range
    decades = range(math.floor(low), math.ceil(high) + 1)
    inside = [
      (factor, power)
      for power in decades
      for factor in (1, 2, 5)
      if low <= math.log10(factor) + power <= high
    ]
    return [
      (factor * 10.0**power, f'{factor}×10{str(power).translate(_SUPERSCRIPT)}')
      for factor, power in inside
    ]

  def _categories(self):
    many = len(self._panel.categories) > 5
    size, most = ('class="small" ', 8) if many else ('', 13)
    for number, label in enumerate(self._panel.categories):
      for row, text in enumerate(_wrapped(label, most)):
        y = _HEIGHT - _BOTTOM + 16 + row * _LINE
        yield (
          f'<text {size}x="{self._x(number):.1f}" y="{y}" '
          f'text-anchor="middle">{escape(text)}</text>'
        )

  def _level(self):
    if self._panel.level and self._panel.level[1]:
      name, found = self._panel.level
      y = self._y(found.mean)
      yield f'<path class="level" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>'
      label = f'{name} {self._text(found)}'
      yield (
        f'<text class="soft" x="{_WIDTH - _RIGHT}" y="{y - 5:.1f}" '
        f'text-anchor="end">{escape(label)}</text>'
      )

  def _bars(self, series: Series):
    width = 0.6 * (self._x(1) - self._x(0))
    bottom = self._y(self._ticks[0])
    for number, found in series.points:
      x = self._x(number)
      if found is None:
        yield (
          f'<text class="soft" x="{x:.1f}" y="{bottom - 6:.1f}" '
          'text-anchor="middle">not given</text>'
        )
        continue
      y = self._y(found.mean)
      kind = 'bar paper' if series.paper else 'bar fill0'
      yield (
        f'<rect class="{kind}" x="{x - width / 2:.1f}" y="{y:.1f}" width="{width:.1f}" '
        f'height="{bottom - y:.1f}"/>'
      )
      yield from self._whisker(x, found)
      yield (
        f'<text x="{x:.1f}" y="{self._y(found.high) - 5:.1f}" '
        f'text-anchor="middle">{self._text(found)}</text>'
      )

  def _line(self, number: int, series: Series):
    points = [(self._x(x), found) for x, found in series.points if found]
    kind = ' paper' if series.paper else ''
    path = 'L'.join(f'{x:.1f} {self._y(found.mean):.1f}' for x, found in points)
    yield f'<path class="line stroke{number % 2}{kind}" d="M{path}"/>'
    for x, found in points:
      yield from self._whisker(x, found)
      yield (
        f'<circle class="fill{number % 2}" cx="{x:.1f}" cy="{self._y(found.mean):.1f}" r="3.5"/>'
      )

  def _whisker(self, x: float, found: Interval):
    if found.half is not None:
      low, high = self._y(max(found.low, self._ticks[0])), self._y(found.high)
      caps = ''.join(f'M{x - 4:.1f} {y:.1f}h8' for y in (low, high))
      yield f'<path class="whisker" d="M{x:.1f} {low:.1f}V{high:.1f}{caps}"/>'

  def _text(self, found: Interval) -> str:
    return f'{found.mean:.{self._panel.digits}f}'

  def _legend(self):
    x = _LEFT
    for number, series in enumerate(self._panel.series):
      yield f'<circle class="fill{number % 2}" cx="{x + 4}" cy="36" r="4"/>'
      yield f'<text x="{x + 13}" y="40">{escape(series.name)}</text>'
      x += 30 + 7 * len(series.name)


def _decimals(tick: float) -> int:
  """How many a round number needs."""
  return len(f'{tick:.6f}'.rstrip('0').partition('.')[2])


def _wrapped(label: str, most: int) -> list[str]:
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
