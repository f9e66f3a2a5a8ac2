"""The panels of an analysis as one SVG figure, two in a row.

It is written without a plotting library, so that the bytes depend on the numbers alone, not on a
library's version or on fonts. Colours are CSS, so that one file serves light and dark mode.
"""

import itertools
import re
from collections.abc import Sequence
from xml.sax.saxutils import escape

from experiments.reports.lines import Lines
from experiments.reports.rows import Rows
from experiments.studies.analysis import Panel

_WIDTH, _ALONE = 460, 760  # pixels: of a panel beside another, and of a single one

_STYLE = """
.figure { font: 11px system-ui, 'DejaVu Sans', sans-serif; --ink: #1f2328; --soft: #656d76; --grid: #d8dee4;
  --page: #ffffff; --first: #1f6feb; --second: #bc4c00; --third: #1a7f37; --fourth: #8250df; --fifth: #9a6700;
  --sixth: #bf3989; --seventh: #57606a; --paper: #8c959f; }
@media (prefers-color-scheme: dark) { .figure { --ink: #e6edf3; --soft: #9198a1; --grid: #30363d; --page: #0d1117;
  --first: #58a6ff; --second: #f0883e; --third: #3fb950; --fourth: #a371f7; --fifth: #d29922; --sixth: #f778ba;
  --seventh: #9198a1; --paper: #7d8590; } }
.figure text { fill: var(--ink); stroke: none; }
.figure .soft { fill: var(--soft); }
.figure .title { font-weight: 600; font-size: 13px; }
.figure .page { fill: var(--page); }
.figure .grid { stroke: var(--grid); }
.figure .expected { fill: var(--first); opacity: 0.1; }
.figure .axis, .figure .whisker { stroke: var(--ink); }
.figure .level { stroke: var(--soft); stroke-dasharray: 5 4; }
.figure .line { fill: none; stroke-width: 2; }
.figure .line.paper { stroke-dasharray: 2 3; }
.figure .stroke0 { stroke: var(--first); } .figure .stroke1 { stroke: var(--second); }
.figure .stroke2 { stroke: var(--third); } .figure .stroke3 { stroke: var(--fourth); }
.figure .stroke4 { stroke: var(--fifth); } .figure .stroke5 { stroke: var(--sixth); }
.figure .stroke6 { stroke: var(--seventh); }
.figure .fill0 { fill: var(--first); } .figure .fill1 { fill: var(--second); } .figure .fill2 { fill: var(--third); }
.figure .fill3 { fill: var(--fourth); } .figure .fill4 { fill: var(--fifth); } .figure .fill5 { fill: var(--sixth); }
.figure .fill6 { fill: var(--seventh); }
.figure .point.paper { fill: var(--paper); }
"""  # noqa: E501


def figure(
  name: str, description: str, panels: Sequence[Panel], alone: float = _ALONE, columns: int = 2
) -> str:
  """The whole SVG file. `name`: becomes its id; `description`: for those who cannot see it;
  `alone`: the width of a panel that has a row to itself; `columns`: the most panels of a row.
  """
  columns = min(columns, len(panels))
  width = _WIDTH if columns > 1 else alone
  drawn = [(Rows if panel.categories else Lines)(panel, width) for panel in panels]
  rows = [drawn[first : first + columns] for first in range(0, len(drawn), columns)]
  heights = [max(each.height for each in row) for row in rows]
  whole, height = width * columns, sum(heights)
  parts = [
    f'<svg xmlns="http://www.w3.org/2000/svg" id="figure-{identifier(name)}" class="figure" '
    f'role="img" viewBox="0 0 {whole} {height}" width="{whole}" height="{height}">',
    f'<title>{escape(description)}</title>',
    f'<style>{_STYLE}</style>',
    f'<rect class="page" width="{whole}" height="{height}"/>',
  ]
  for row, y in zip(rows, itertools.accumulate(heights, initial=0)):
    for column, each in enumerate(row):
      parts += [f'<g transform="translate({column * width} {y})">', *each.draw(), '</g>']
  return '\n'.join([*parts, '</svg>', ''])


def identifier(name: str) -> str:
  """A name as an id for HTML and SVG."""
  return re.sub(r'[^\w-]', '_', name)
