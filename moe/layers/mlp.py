"""The dense SwiGLU FFN. The shared experts are one such FFN, as wide as all of them together."""

import jax
from flax import linen as nn

from moe.config import Config
from moe.layers.linear import projection
from moe.ops.swiglu import activation


class MLP(nn.Module):
  """down(silu(gate x) · up x), no biases, hidden width `width`."""

  config: Config
  width: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """x (..., D) in the compute type → the same."""
    gate = projection(self, x, 'gate', self.width, axes=('width', 'hidden'))
    up = projection(self, x, 'up', self.width, axes=('width', 'hidden'))
    hidden = activation(gate, up)
    return projection(self, hidden, 'down', self.config.model.d_model, axes=('hidden', 'width'))

  @classmethod
  def num_params(cls, config: Config, width: int) -> int:
    """Three matrices."""
    return 3 * config.model.d_model * width
