"""What is trained beside a layer's own parameters, and changes them or takes their place:
`moe.finetune.trained` puts it into the tree.

E routed experts, C places for the chosen ones of a layer, X and Y any matrix, r rank of an adapter.
"""

import jax
from flax import linen as nn

from moe.config import Config
from moe.ops.matmul import batched, matmul
from moe.ops.routed_ffn import ExpertWeights

# int32 (C,): the experts that a layer's chosen rows stand for; from E on: none.
CHOSEN = 'chosen'
MATRICES = ('gate', 'up', 'down')


def of_chosen(name: str) -> str:
  """What the chosen experts' rows of a matrix are called."""
  return f'{name}_chosen'


def of_adapter(name: str) -> tuple[str, str]:
  """What the two matrices of a matrix's adapter are called, A and B."""
  return f'{name}_lora_a', f'{name}_lora_b'


def adapted(module: nn.Module, name: str, w_XY: jax.Array) -> jax.Array:
  """A matrix of the module's own, W + α/r · A B where it has an adapter.

  Made whole, in float32, once a use: of T tokens' product with W that is a share r/T. So it is
  rounded as the merged matrix will be.
  """
  a, b = of_adapter(name)
  if not module.has_variable('params', a):
    return w_XY
  a_Xr, b_rY = (module.get_variable('params', each) for each in (a, b))
  return w_XY + scale(module.config) * matmul(a_Xr, b_rY)


def with_chosen(module: nn.Module, weights: ExpertWeights) -> ExpertWeights:
  """All experts' weights: chosen ones that are trained by themselves in their places, or with their
  adapters added.

  A layer's gradient is whole for a moment; what is kept is the chosen ones', or their adapters'.
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
  """Rows of experts; zeros in places that stay empty."""
  return w_EXY.at[places_C].get(mode='fill', fill_value=0)


def put(w_EXY: jax.Array, places_C: jax.Array, rows_CXY: jax.Array) -> jax.Array:
  """Experts with some of them replaced; all others bit for bit."""
  return w_EXY.at[places_C].set(rows_CXY, mode='drop', unique_indices=True)


def add(
  w_EXY: jax.Array, places_C: jax.Array, a_CXr: jax.Array, b_CrY: jax.Array, scale: float
) -> jax.Array:
  """Experts, some of them with their adapters added; all others bit for bit."""
  return w_EXY.at[places_C].add(scale * batched(a_CXr, b_CrY), mode='drop', unique_indices=True)
