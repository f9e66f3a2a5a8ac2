"""The DeepSeekMoE layer: shared experts beside fine-grained routed ones (Eq. 9, without its residual)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from moe.config import Config
from moe.layers.experts import Experts
from moe.layers.mlp import MLP
from moe.layers.router import HashRouter, SoftmaxRouter
from moe.metrics.telemetry import Telemetry
from moe.ops.router import RoutingStats

_ROUTERS = {'softmax': SoftmaxRouter, 'hash': HashRouter}


class Aside(NamedTuple):
  """What a layer gives beside its result. A stack of N layers adds a leading axis N to every array."""

  stats: RoutingStats | None  # for the balance terms; None where nothing is routed
  telemetry: Telemetry


class MoELayer(nn.Module):
  """Σ shared FFN(u) + Σ gate · routed FFN(u). Shared experts are ungated and stored as one FFN of their joint width."""

  config: Config

  @nn.compact
  def __call__(
    self, u_BLD: jax.Array, token_ids_BL: jax.Array, is_token_BL: jax.Array
  ) -> tuple[jax.Array, Aside]:
    """The layer's output, and what it measured."""
    moe = self.config.moe
    y_BLD, aside = jnp.zeros_like(u_BLD), Aside(None, {})
    if moe.num_experts:
      router = _ROUTERS[moe.router](self.config, name='router')
      gates_BLK, experts_BLK, stats = router(u_BLD, token_ids_BL, is_token_BL)
      routed_BLD, exchange = Experts(self.config, name='experts')(
        u_BLD, gates_BLK, experts_BLK, is_token_BL
      )
      y_BLD += routed_BLD
      aside = Aside(stats, exchange)
    if moe.num_shared_experts:
      width = moe.num_shared_experts * moe.d_expert
      y_BLD += MLP(self.config, width, name='shared')(u_BLD)
    return y_BLD, aside
