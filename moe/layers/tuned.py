"""Trained parameters that change a layer's own or take their place: adapters and chosen experts.
`moe.finetune.trained` puts them into the tree.

E routed experts, C places for the chosen ones of a layer, X and Y any matrix, r rank of an adapter.
"""

import jax
from flax import linen as nn

from moe.config import Config
from moe.ops.matmul import batched, matmul
from moe.ops.routed_ffn import ExpertWeights

# int32 (C,): which expert each of a layer's chosen rows belongs to; E or more: none.
CHOSEN = 'chosen'
MATRICES = ('gate', 'up', 'down')


def of_chosen(name: str) -> str:
  """The parameter name of the chosen experts' rows of a matrix."""
  return f'{name}_chosen'


def of_adapter(name: str) -> tuple[str, str]:
  """The parameter names of the two matrices of a matrix's adapter, A and B."""
  return f'{name}_lora_a', f'{name}_lora_b'


def adapted(module: nn.Module, name: str, w_XY: jax.Array) -> jax.Array:
  """The module's matrix W, or W + α/r · A B where it has an adapter.

  The sum is computed in full, in float32, on every use, so that it is rounded as the merged matrix
  will be. This costs r/T of the product of T tokens with W.
  """
  a, b = of_adapter(name)
  if not module.has_variable('params', a):
    return w_XY
  a_Xr, b_rY = (module.get_variable('params', each) for each in (a, b))
  return w_XY + scale(module.config) * matmul(a_Xr, b_rY)


def with_chosen(module: nn.Module, weights: ExpertWeights) -> ExpertWeights:
  """All experts' weights. Chosen experts are replaced by their trained rows, or have their adapters
  added.

  Backward briefly holds the gradient of all the layer's experts; it keeps only that of the chosen
  ones, or of their adapters.
  """
  if not module.has_variable('params', CHOSEN):
    return weights
  places_C = module.get_variable('params', CHOSEN)

  def changed(name, w_EXY):
    if module.has_variable('params', of_chosen(name)):
      return put(w_EXY, places_C, module.get_variable('params', of_chosen(name)))
    a_CXr, b_CrY = (module.get_variable('params', each) for each in of_adapter(name))
    return add(w_EXY, places_C, a_CXr, b_CrY, scale(module.config))

  return ExpertWeights(*map(changed, MATRICES, weights))


def scale(config: Config) -> float:
  """α/r."""
  return config.finetune.lora_alpha / config.finetune.lora_rank


def take(w_EXY: jax.Array, places_C: jax.Array) -> jax.Array:
  """The experts in these places; zeros in places that stay empty."""
  return w_EXY.at[places_C].get(mode='fill', fill_value=0)


def put(w_EXY: jax.Array, places_C: jax.Array, rows_CXY: jax.Array) -> jax.Array:
  """All experts, those in `places_C` replaced; the others stay bit for bit."""
  return w_EXY.at[places_C].set(rows_CXY, mode='drop', unique_indices=True)


def add(
  w_EXY: jax.Array, places_C: jax.Array, a_CXr: jax.Array, b_CrY: jax.Array, scale: float
) -> jax.Array:
  """All experts, those in `places_C` with their adapters added; the others stay bit for bit."""
  return w_EXY.at[places_C].add(scale * batched(a_CXr, b_CrY), mode='drop', unique_indices=True)
