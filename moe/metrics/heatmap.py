"""The experts' load as a picture: a row a MoE layer, a column an expert."""

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def expert_load(load_NE: np.ndarray, step: int) -> Figure:
  """Colour is the load over the layer's mean."""
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
