"""Figures and tables of the notebooks.

N MoE layers, R rows of a panel, E routed experts.
"""

from collections.abc import Hashable, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm

from moe.evaluate import Evaluation

_LAYERS = 4  # panels of a figure: layers in between look much like their neighbours
_COLOUR_ENDS = 4.0  # top of the colour scale: one extreme expert must not bleach all others


def heatmap(
  values_RE: np.ndarray, ylabel: str, meaning: str, rows: Sequence[str] | None = None
) -> None:
  """One panel with a column for each expert. White is 1, what chance would give; grey is NaN."""
  _panels({'': values_RE}, ylabel, meaning, rows)


def heatmap_by_layer(
  values_NRE: np.ndarray, ylabel: str, meaning: str, rows: Sequence[str] | None = None
) -> None:
  """One panel a layer, for a few layers from first to last."""
  layers = np.unique(np.linspace(0, len(values_NRE) - 1, _LAYERS).astype(int))
  _panels({f'MoE layer {layer}': values_NRE[layer] for layer in layers}, ylabel, meaning, rows)


def lines(x: Sequence, series: Mapping[str, Sequence[float]], xlabel: str, ylabel: str) -> Axes:
  """One line for each name; the last one, which is over all of them, in black."""
  axes = plt.figure(figsize=(6.4, 4), layout='constrained').subplots()
  *_, last = series
  for name, values in series.items():
    style = {'color': 'black', 'linewidth': 2.5} if name == last else {}
    axes.plot(range(len(x)), values, marker='o', label=name, **style)
  axes.set(xticks=range(len(x)), xticklabels=x, xlabel=xlabel, ylabel=ylabel)
  axes.grid(alpha=0.3)
  axes.legend()
  return axes


def loss_lines(
  evaluations: Mapping[Hashable, Evaluation], trained: Evaluation, xlabel: str
) -> None:
  """Plots by domain how far each intervention moves the held-out loss from that of the model as
  trained.
  """
  by_domain = lambda evaluation: evaluation.domains | {'all': evaluation.total}
  above = lambda name, evaluation: by_domain(evaluation)[name].loss - by_domain(trained)[name].loss
  series = {
    name: [above(name, evaluation) for evaluation in evaluations.values()]
    for name in by_domain(trained)
  }
  lines(
    [str(label) for label in evaluations],
    series,
    xlabel,
    'held-out loss over that as trained, nats a token',
  )


def bars(groups: Mapping[str, np.ndarray], xlabel: str, ylabel: str) -> None:
  """Bars side by side: values_N of every name, at x = 0 … N − 1."""
  axes = plt.figure(figsize=(6.4, 3), layout='constrained').subplots()
  width = 0.8 / len(groups)
  for place, (name, values_N) in enumerate(groups.items()):
    axes.bar(
      np.arange(len(values_N)) + (place - (len(groups) - 1) / 2) * width,
      values_N,
      width,
      label=name,
    )
  axes.set(xticks=range(len(values_N)), xlabel=xlabel, ylabel=ylabel)
  axes.legend()


def loss_table(evaluations: Mapping[Hashable, Evaluation]) -> str:
  """Held-out loss, nats a token, with one row an intervention and one column a domain."""
  (first, *_), width = evaluations.values(), max(map(len, map(str, evaluations))) + 2
  lines = [' ' * width + ''.join(f'{name:>14}' for name in [*first.domains, 'all'])]
  for label, evaluation in evaluations.items():
    losses = [score.loss for score in [*evaluation.domains.values(), evaluation.total]]
    lines.append(f'{label!s:<{width}}' + ''.join(f'{loss:>14.4f}' for loss in losses))
  return '\n'.join(lines)


def _panels(panels, ylabel, meaning, rows):
  """Draws panels, NAME → values_RE, under one another on one colour scale."""
  (values_RE, *_), largest = (
    panels.values(),
    np.nanmax([np.nanmax(values_RE) for values_RE in panels.values()]),
  )
  num_rows, experts = values_RE.shape
  size = (2.5 + min(0.35 * experts, 9), len(panels) * (0.7 + min(0.25 * num_rows, 3)))
  figure, grid = plt.subplots(
    len(panels), 1, figsize=size, sharex=True, squeeze=False, layout='constrained'
  )
  colours = plt.get_cmap('RdBu_r').with_extremes(bad='lightgrey')
  norm = TwoSlopeNorm(1.0, vmin=0.0, vmax=min(max(2.0, largest), _COLOUR_ENDS))
  for axes, (name, values_RE) in zip(grid[:, 0], panels.items()):
    image = axes.imshow(values_RE, cmap=colours, norm=norm, aspect='auto', interpolation='nearest')
    axes.set(title=name, ylabel=ylabel)
    if rows is not None:
      axes.set_yticks(range(num_rows), rows)
    elif num_rows < 10:
      axes.set_yticks(range(num_rows))
  grid[-1, 0].set_xlabel('routed expert')
  if experts <= 20:
    grid[-1, 0].set_xticks(range(experts))
  figure.colorbar(
    image, ax=grid[:, 0], label=meaning, extend='max' if largest > _COLOUR_ENDS else 'neither'
  )
