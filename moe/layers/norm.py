"""RMSNorm."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from moe.config import Config
from moe.parallel.sharding import param


class RMSNorm(nn.Module):
  """x · scale / sqrt(mean(x²) + eps) over the last axis.
  Computed in float32: bfloat16 squares lose small features.
  """

  config: Config

  @nn.compact
  def __call__(self, x_BLD: jax.Array) -> jax.Array:
    ones = nn.initializers.ones
    scale_D = param(self, 'scale', x_BLD.shape[-1:], axes=(None,), init=ones, decayed=False)
    per_feature = scale_D.reshape((1,) * (x_BLD.ndim - 1) + scale_D.shape)
    x = x_BLD.astype(jnp.float32)
    normed = x * jax.lax.rsqrt(
      jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.config.model.norm_eps
    )
    return (normed * per_feature).astype(x_BLD.dtype)

  @classmethod
  def num_params(cls, config: Config) -> int:
    """One scale for each feature of the residual stream."""
    return config.model.d_model
