"""A panel of rows, each with a label, a dot with its interval, and the number.

Dots, not bars: a dot needs no axis that starts at zero, so losses that differ by hundredths can be
told apart. The paper's values are diamonds, drawn under ours. A point beyond the panel's limits is
an arrow at the edge, with its number beside it as everywhere. The range where a row is expected is
shaded.
"""

import itertools
from collections.abc import Iterator
from xml.sax.saxutils import escape

from experiments.reports import axes
from experiments.studies.analysis import NONE, Panel, Series
from experiments.studies.intervals import Interval

_LEFT, _TOP, _BOTTOM = 14, 36, 44
_ROW, _PADDING = 22, 9  # the least height of a row; what is added to its lines of text
_LABELS = 24  # characters in a line of a label, in a panel of half the width
_GAP = 10
_NOT_GIVEN = 'not given'


class Rows:
  """Draws the panel as SVG elements, `width` pixels wide and `height` high."""

  def __init__(self, panel: Panel, width: float):
    self._panel = panel
    most = _LABELS if width < 600 else 2 * _LABELS
    self._labels = [axes.wrapped(label, most) for label in panel.categories]
    self._tops = [_TOP + (axes.LINE if len(panel.series) > 1 else 0)]
    for lines in self._labels:
      self._tops.append(self._tops[-1] + max(_ROW, axes.LINE * len(lines) + _PADDING))
    self.height = self._tops[-1] + _BOTTOM
    widest = max(axes.length(line) for lines in self._labels for line in lines)
    self._numbers = [
      max(map(axes.length, (series.name, *(self._text(each, series) for _, each in series.points))))
      for series in panel.series
    ]
    self._from = _LEFT + widest + _GAP
    self._to = width - axes.RIGHT - sum(_GAP + each for each in self._numbers)
    low, high = panel.limits or axes.span(panel)
    self._ticks = axes.ticks(low, high, most=4)

  def draw(self) -> Iterator[str]:
    yield axes.title(self._panel, _LEFT)
    yield from self._expected()
    yield from self._grid()
    for number, lines in enumerate(self._labels):
      first = self._middle(number) + 4 - axes.LINE * (len(lines) - 1) / 2
      for row, text in enumerate(lines):
        yield (
          f'<text x="{self._from - _GAP:.1f}" y="{first + row * axes.LINE:.1f}" '
          f'text-anchor="end">{escape(text)}</text>'
        )
    ends = itertools.accumulate((_GAP + width for width in self._numbers), initial=self._to)
    columns = list(zip(self._panel.series, list(ends)[1:], strict=True))
    for series, right in reversed(columns):  # ours last, over the paper's
      yield from self._series(series, right)

  def _middle(self, number: float) -> float:
    row = int(number)
    return (self._tops[row] + self._tops[row + 1]) / 2

  def _x(self, value: float) -> float:
    low, high = self._ticks[0], self._ticks[-1]
    return self._from + (value - low) / (high - low) * (self._to - self._from)

  def _expected(self):
    low, high = self._ticks[0], self._ticks[-1]
    for number, (above, below) in enumerate(self._panel.expected):
      first, last = (self._x(min(max(end, low), high)) for end in (above, below))
      top, bottom = self._tops[number] + 2, self._tops[number + 1] - 2
      yield f'<path class="expected" d="M{first:.1f} {top}H{last:.1f}V{bottom}H{first:.1f}Z"/>'

  def _grid(self):
    digits = axes.decimals(self._ticks)
    top, bottom = self._tops[0], self._tops[-1]
    for tick in self._ticks:
      kind = 'axis' if tick == 0 else 'grid'
      yield f'<path class="{kind}" d="M{self._x(tick):.1f} {top}V{bottom}"/>'
      text = axes.signed(tick, digits)
      yield (
        f'<text class="soft" x="{self._x(tick):.1f}" y="{bottom + 15}" '
        f'text-anchor="middle">{text}</text>'
      )
    yield (
      f'<text class="soft" x="{(self._from + self._to) / 2:.1f}" y="{bottom + 33}" '
      f'text-anchor="middle">{escape(self._panel.y_axis)}</text>'
    )

  def _series(self, series: Series, right: float):
    if len(self._panel.series) > 1:
      yield (
        f'<text class="soft" x="{right:.1f}" y="{self._tops[0] - 4}" '
        f'text-anchor="end">{escape(series.name)}</text>'
      )
    for number, found in series.points:
      y = self._middle(number)
      if found:
        yield from self._whisker(found, y)
        yield self._mark(found, y, series.paper)
      kind = '' if found and not series.paper else 'class="soft" '
      yield (
        f'<text {kind}x="{right:.1f}" y="{y + 4:.1f}" text-anchor="end">'
        f'{self._text(found, series)}</text>'
      )

  def _mark(self, found: Interval, y: float, paper: bool) -> str:
    low, high = self._ticks[0], self._ticks[-1]
    kind = 'point paper' if paper else 'point fill0'
    if low <= found.mean <= high:
      x = self._x(found.mean)
      if not paper:
        return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
      return f'<path class="{kind}" d="M{x - 5:.1f} {y:.1f}l5 -5l5 5l-5 5Z"/>'
    outwards = 1 if found.mean > high else -1
    x = self._x(high if outwards > 0 else low)
    return f'<path class="{kind}" d="M{x:.1f} {y:.1f}l{-8 * outwards} -5v10Z"/>'

  def _whisker(self, found: Interval, y: float):
    low, high = (min(max(end, self._ticks[0]), self._ticks[-1]) for end in (found.low, found.high))
    if found.half is not None and low < high:
      caps = ''.join(f'M{self._x(end):.1f} {y - 4:.1f}v8' for end in (low, high))
      yield f'<path class="whisker" d="M{self._x(low):.1f} {y:.1f}H{self._x(high):.1f}{caps}"/>'

  def _text(self, found: Interval | None, series: Series) -> str:
    if not found:
      return _NOT_GIVEN if series.paper else NONE
    number = axes.number(found, self._panel)
    if not self._panel.intervals or found.half is None:
      return number
    low, high = (axes.signed(end, self._panel.digits) for end in (found.low, found.high))
    return f'{number} ({low} to {high})'
