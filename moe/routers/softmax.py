"""Softmax top-k with raw gates (Eq. 7–11); Switch's with k = 1."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from moe.config import Config
from moe.ops.router import Routing, route
from moe.parallel import sharding, zero
from moe.routers.base import Router


class SoftmaxRouter(Router):
  """Affinities are the softmax of u · e; the K largest are the gates (Eq. 7, 8, 10).
  See `moe.ops.router.route`.
  """

  interventions: ClassVar[tuple[str, ...]] = (*Router.interventions, 'masked_share')

  @nn.compact
  def choose(
    self, u_BLD: jax.Array, token_ids_BL: jax.Array, is_token_BL: jax.Array, k: int
  ) -> Routing:
    del token_ids_BL
    config = self.config
    shape, axes = (config.model.d_model, config.moe.num_experts), ('width', None)
    experts_DE = sharding.param(self, 'experts', shape, axes)
    stored, batch = sharding.stored(axes, shape), sharding.spec('batch')

    def choose(u_BLD, experts_DE, is_token_BL):
      # float32 throughout: rounding a logit to bfloat16 moves tokens to other experts.
      experts_DE = zero.gathered(experts_DE, stored, jnp.float32)
      logits_BLE = jnp.matmul(
        u_BLD.astype(jnp.float32), experts_DE, precision=lax.Precision.HIGHEST
      )
      return route(logits_BLE, is_token_BL, k, implementation=config.ops.implementation)

    specs = batch, stored.spec, batch
    return sharding.per_shard(choose, specs, batch)(u_BLD, experts_DE, is_token_BL)

  @classmethod
  def num_params(cls, config: Config) -> int:
    """The centroids e_i of Eq. 8."""
    return config.model.d_model * config.moe.num_experts
