"""A panel of lines: values over a number, with their intervals."""

import math
from collections.abc import Iterator
from xml.sax.saxutils import escape

from experiments.reports import axes
from experiments.reports.axes import RIGHT
from experiments.studies.analysis import Panel, Series
from experiments.studies.intervals import Interval

_HEIGHT = 300
_LEFT, _TOP, _BOTTOM = 62, 52, 56  # room around the axes
_SUPERSCRIPT = str.maketrans('0123456789-', '⁰¹²³⁴⁵⁶⁷⁸⁹⁻')


class Lines:
  """Its parts as elements, in `width` pixels; `height` of them."""

  height = _HEIGHT

  def __init__(self, panel: Panel, width: float):
    self._panel, self._width = panel, width
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
      yield from self._legend()

  def _x(self, value: float) -> float:
    low, high = self._x_range
    value = math.log10(value) if self._panel.log_x else value
    return _LEFT + (value - low) / (high - low) * (self._width - _LEFT - RIGHT)

  def _y(self, value: float) -> float:
    low, high = self._ticks[0], self._ticks[-1]
    return _HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

  def _y_axis(self):
    digits = axes.decimals(self._ticks)
    for tick in self._ticks:
      y = self._y(tick)
      yield f'<path class="grid" d="M{_LEFT} {y:.1f}H{self._width - RIGHT}"/>'
      yield (
        f'<text class="soft" x="{_LEFT - 6}" y="{y + 4:.1f}" '
        f'text-anchor="end">{tick:.{digits}f}</text>'
      )
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    yield (
      f'<text x="14" y="{middle}" text-anchor="middle" transform="rotate(-90 14 '
      f'{middle})">{escape(self._panel.y_axis)}</text>'
    )
    yield f'<path class="axis" d="M{_LEFT} {_HEIGHT - _BOTTOM}H{self._width - RIGHT}"/>'

  def _x_axis(self):
    for value, label in self._x_ticks():
      x = self._x(value)
      yield f'<path class="axis" d="M{x:.1f} {_HEIGHT - _BOTTOM}v4"/>'
      yield (
        f'<text class="soft" x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 17}" '
        f'text-anchor="middle">{label}</text>'
      )
    middle = (_LEFT + self._width - RIGHT) / 2
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

  def _legend(self):
    x = _LEFT
    for number, series in enumerate(self._panel.series):
      yield f'<circle class="fill{number % 2}" cx="{x + 4}" cy="36" r="4"/>'
      yield f'<text x="{x + 13}" y="40">{escape(series.name)}</text>'
      x += 30 + 7 * len(series.name)
