"""The dense SwiGLU FFN; shared experts are one of these, as wide as all of them together."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from moe.config import ModelConfig
from moe.layers import initializers
from moe.ops.matmul import linear
from moe.ops.swiglu import activation


class MLP(nn.Module):
  """down(silu(gate x) · up x), no biases, hidden width `width`."""

  config: ModelConfig
  width: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """x (..., D) in the compute type → the same."""
    dtype = jnp.dtype(self.config.dtype)
    matrix = lambda name, *shape: self.param(name, initializers.matrix(self.config), shape)
    gate = linear(x, matrix('gate', self.config.d_model, self.width), dtype)
    up = linear(x, matrix('up', self.config.d_model, self.width), dtype)
    return linear(activation(gate, up), matrix('down', self.width, self.config.d_model), dtype)
