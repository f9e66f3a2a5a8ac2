"""A panel of lines: values over a numeric x, with their intervals."""

import math
from collections.abc import Iterator
from xml.sax.saxutils import escape

from experiments.reports import axes
from experiments.reports.axes import RIGHT
from experiments.studies.analysis import Panel, Series
from experiments.studies.intervals import Interval

_PLOT = 192  # pixels from the lowest tick to the highest
_LEFT, _TOP, _BOTTOM = 62, 36, 56  # margins around the axes; the legend's rows add to the top
_LEGEND = 16  # height of one row
_COLOURS = 7
_FEW = 3  # a logarithmic axis with at most so many points has its ticks at them
MOST_MARKED = 20  # a line of more points is drawn without dots and intervals
_SUPERSCRIPT = str.maketrans('0123456789-', '⁰¹²³⁴⁵⁶⁷⁸⁹⁻')


class Lines:
  """Draws the panel as SVG elements, `width` pixels wide and `height` high."""

  def __init__(self, panel: Panel, width: float):
    self._panel, self._width = panel, width
    self._legend = _placed([series.name for series in panel.series], width)
    self._top = _TOP + _LEGEND * (1 + max(row for _, row in self._legend))
    self._bottom = self._top + _PLOT
    self.height = self._bottom + _BOTTOM
    self._ticks = axes.ticks(*axes.span(panel))
    xs = [x for series in panel.series for x, each in series.points if each]
    if panel.log_x:
      self._x_range = (math.log10(min(xs)) - 0.1, math.log10(max(xs)) + 0.1)
    else:
      margin = 0.06 * ((max(xs) - min(xs)) or 1.0)
      self._x_range = (min(xs) - margin, max(xs) + margin)

  def draw(self) -> Iterator[str]:
    yield axes.title(self._panel, _LEFT)
    yield from self._y_axis()
    yield from self._x_axis()
    yield from self._level()
    for number, series in enumerate(self._panel.series):
      yield from self._line(number, series)
    if len(self._panel.series) > 1:
      yield from self._names()

  def _x(self, value: float) -> float:
    low, high = self._x_range
    value = math.log10(value) if self._panel.log_x else value
    return _LEFT + (value - low) / (high - low) * (self._width - _LEFT - RIGHT)

  def _y(self, value: float) -> float:
    low, high = self._ticks[0], self._ticks[-1]
    return self._bottom - (value - low) / (high - low) * _PLOT

  def _y_axis(self):
    digits = axes.decimals(self._ticks)
    for tick in self._ticks:
      y = self._y(tick)
      yield f'<path class="grid" d="M{_LEFT} {y:.1f}H{self._width - RIGHT}"/>'
      yield (
        f'<text class="soft" x="{_LEFT - 6}" y="{y + 4:.1f}" '
        f'text-anchor="end">{axes.signed(tick, digits)}</text>'
      )
    middle = self._bottom - _PLOT / 2
    yield (
      f'<text x="14" y="{middle}" text-anchor="middle" transform="rotate(-90 14 '
      f'{middle})">{escape(self._panel.y_axis)}</text>'
    )
    yield f'<path class="axis" d="M{_LEFT} {self._bottom}H{self._width - RIGHT}"/>'

  def _x_axis(self):
    for value, label in self._x_ticks():
      x = self._x(value)
      yield f'<path class="axis" d="M{x:.1f} {self._bottom}v4"/>'
      yield (
        f'<text class="soft" x="{x:.1f}" y="{self._bottom + 17}" '
        f'text-anchor="middle">{label}</text>'
      )
    middle = (_LEFT + self._width - RIGHT) / 2
    yield (
      f'<text x="{middle}" y="{self._bottom + 40}" '
      f'text-anchor="middle">{escape(self._panel.x_axis)}</text>'
    )

  def _x_ticks(self):
    xs = sorted({x for series in self._panel.series for x, _ in series.points})
    low, high = self._x_range
    if not self._panel.log_x and len(xs) > MOST_MARKED:
      xs = [x for x in axes.ticks(xs[0], xs[-1]) if low <= x <= high]
    if not self._panel.log_x or len(xs) <= _FEW:
      return [(x, _point(x)) for x in xs]  # the points themselves
    decades = range(math.floor(low), math.ceil(high) + 1)
    inside = [
      (factor, power)
      for power in decades
      for factor in (1, 2, 5)
      if low <= math.log10(factor) + power <= high
    ]
    return [(factor * 10.0**power, _round(factor, power)) for factor, power in inside]

  def _level(self):
    if self._panel.level and self._panel.level[1]:
      name, found = self._panel.level
      y = self._y(found.mean)
      yield f'<path class="level" d="M{_LEFT} {y:.1f}H{self._width - RIGHT}"/>'
      label = f'{name} {axes.number(found, self._panel)}'
      yield (
        f'<text class="soft" x="{self._width - RIGHT}" y="{y - 5:.1f}" '
        f'text-anchor="end">{escape(label)}</text>'
      )

  def _line(self, number: int, series: Series):
    points = [(self._x(x), found) for x, found in series.points if found]
    kind = ' paper' if series.paper else ''
    path = 'L'.join(f'{x:.1f} {self._y(found.mean):.1f}' for x, found in points)
    colour = number % _COLOURS
    yield f'<path class="line stroke{colour}{kind}" d="M{path}"/>'
    for x, found in points if len(points) <= MOST_MARKED else ():
      yield from self._whisker(x, found, colour)
      yield (f'<circle class="fill{colour}" cx="{x:.1f}" cy="{self._y(found.mean):.1f}" r="3.5"/>')

  def _whisker(self, x: float, found: Interval, colour: int):
    if found.half is not None:
      low, high = self._y(max(found.low, self._ticks[0])), self._y(found.high)
      caps = ''.join(f'M{x - 4:.1f} {y:.1f}h8' for y in (low, high))
      yield f'<path class="whisker stroke{colour}" d="M{x:.1f} {low:.1f}V{high:.1f}{caps}"/>'

  def _names(self):
    for number, (x, row) in enumerate(self._legend):
      y = _TOP + row * _LEGEND
      yield f'<circle class="fill{number % _COLOURS}" cx="{x + 4:g}" cy="{y}" r="4"/>'
      yield f'<text x="{x + 13:g}" y="{y + 4}">{escape(self._panel.series[number].name)}</text>'


def _point(x: float) -> str:
  """A point's place as text: plain where that is short, else with a power of ten."""
  if x == 0 or 1e-4 <= abs(x) < 1e6:
    return f'{x:g}'
  power = math.floor(math.log10(abs(x)))
  return _power(f'{x / 10.0**power:.3g}', power)


def _round(factor: int, power: int) -> str:
  """A round number as text: plain where that is short, else with a power of ten."""
  if -3 <= power <= 3:
    return f'{factor * 10.0**power:g}'
  return _power(str(factor), power)


def _power(factor: str, power: int) -> str:
  return f'{factor}×10{str(power).translate(_SUPERSCRIPT)}'


def _placed(names, width):
  """(x, row) of each name in the legend, as many in a row as fit."""
  places, x, row = [], _LEFT, 0
  for name in names:
    needed = 13 + axes.length(name)
    if x > _LEFT and x + needed > width - RIGHT:
      x, row = _LEFT, row + 1
    places.append((x, row))
    x += needed + 17
  return places
