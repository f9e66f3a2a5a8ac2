"""Pictures of a run's measurements: the experts' load, and a step's time by scope.

Only functions that draw import matplotlib: it is a seventh of what a start of training imports.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
  from matplotlib.figure import Figure

_SCOPES = 12  # at most in a picture of time: the longest ones


def expert_load(load_NE: np.ndarray, step: int) -> 'Figure':
  """A heatmap of load over the layer's mean, with a row per MoE layer and a column per expert."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  layers, experts = load_NE.shape
  size = 2 + 0.12 * min(experts, 128), 1.2 + 0.25 * layers
  figure = Figure(figsize=size, layout='constrained')
  FigureCanvasAgg(figure)
  axes = figure.add_subplot()
  largest = max(2.0, float(load_NE.max()))
  image = axes.imshow(load_NE, vmin=0, vmax=largest, aspect='auto', interpolation='nearest')
  axes.set(xlabel='expert', ylabel='MoE layer', title=f'expert load over mean, step {step}')
  figure.colorbar(image)
  return figure


def write_time_by_scope(rows: Sequence[tuple[str, str, float, float]], path: Path) -> None:
  """Writes an SVG with a bar per scope, forward and backward. `rows`: from `profile.table`."""
  from matplotlib.backends.backend_svg import FigureCanvasSVG
  from matplotlib.figure import Figure

  sums: dict[str, dict[str, float]] = {}
  for scope, direction, milliseconds, _ in rows:
    sums.setdefault(scope or '(no scope)', {})[direction] = milliseconds
  longest = sorted(sums, key=lambda name: sum(sums[name].values()))[-_SCOPES:]
  figure = Figure(figsize=(8, 1 + 0.25 * len(longest)), layout='constrained')
  axes = figure.add_subplot()
  left = np.zeros(len(longest))
  for direction, colour in (('forward', '#4c78a8'), ('backward', '#f58518')):
    widths = np.array([sums[name].get(direction, 0.0) for name in longest])
    axes.barh(longest, widths, left=left, label=direction, color=colour)
    left += widths
  axes.set_xlabel('ms a step, summed over the cores or devices that computed')
  axes.legend(frameon=False)
  axes.spines[['top', 'right']].set_visible(False)
  FigureCanvasSVG(figure).print_svg(str(path))
