"""The dense SwiGLU FFN; shared experts are one of these, as wide as all of them together."""

import jax
from flax import linen as nn

from moe.config import Config
from moe.layers import initializers
from moe.layers.linear import linear
from moe.ops.swiglu import activation
from moe.parallel import mesh


class MLP(nn.Module):
  """down(silu(gate x) · up x), no biases, hidden width `width`."""

  config: Config
  width: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """x (..., D) in the compute type → the same."""
    d, f = self.config.model.d_model, self.width
    gate, up = self._product(x, 'gate', d, f), self._product(x, 'up', d, f)
    return self._product(activation(gate, up), 'down', f, d)

  @classmethod
  def num_params(cls, config: Config, width: int) -> int:
    """Three matrices."""
    return 3 * config.model.d_model * width

  def _product(self, x, name, rows, columns):
    w_KN = self.param(name, initializers.matrix(self.config), (rows, columns))
    return linear(x, w_KN, mesh.parameter_axes('mlp', name), self.config)
