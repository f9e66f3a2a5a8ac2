"""What is trained beside a layer's own parameters, and takes their place: `moe.finetune.trained`
puts it into the tree.

E routed experts, C places for the chosen ones of a layer, X and Y any matrix.
"""

import jax
from flax import linen as nn

from moe.ops.routed_ffn import ExpertWeights

# int32 (C,): the experts that a layer's chosen rows stand for; from E on: none.
CHOSEN = 'chosen'
MATRICES = ('gate', 'up', 'down')


def of_chosen(name: str) -> str:
  """What the chosen experts' rows of a matrix are called."""
  return f'{name}_chosen'


def with_chosen(module: nn.Module, weights: ExpertWeights) -> ExpertWeights:
  """All experts' weights, those that are trained by themselves in their places.

  A layer's gradient is whole for a moment, and only the chosen rows of it are kept.
  """
  if not module.has_variable('params', CHOSEN):
    return weights
  places_C = module.get_variable('params', CHOSEN)
  rows = (module.get_variable('params', of_chosen(name)) for name in MATRICES)
  return ExpertWeights(*(put(w, places_C, r) for w, r in zip(weights, rows, strict=True)))


def take(w_EXY: jax.Array, places_C: jax.Array) -> jax.Array:
  """Rows of experts; zeros in places that stay empty."""
  return w_EXY.at[places_C].get(mode='fill', fill_value=0)


def put(w_EXY: jax.Array, places_C: jax.Array, rows_CXY: jax.Array) -> jax.Array:
  """Experts with some of them replaced; all others bit for bit."""
  return w_EXY.at[places_C].set(rows_CXY, mode='drop', unique_indices=True)
