"""The DeepSeekMoE layer: shared experts beside fine-grained routed ones (Eq. 9, without its residual)."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from moe.config import Config
from moe.layers.experts import Experts
from moe.layers.mlp import MLP
from moe.layers.router import HashRouter, SoftmaxRouter
from moe.ops.router import RoutingStats

_ROUTERS = {'softmax': SoftmaxRouter, 'hash': HashRouter}


class MoELayer(nn.Module):
  """Σ shared FFN(u) + Σ gate · routed FFN(u). Shared experts are ungated and stored as one FFN of their joint width."""

  config: Config

  @nn.compact
  def __call__(
    self, u_BLD: jax.Array, token_ids_BL: jax.Array, is_token_BL: jax.Array
  ) -> tuple[jax.Array, RoutingStats | None]:
    """The layer's output, and the routing statistics (None where there are no routed experts)."""
    moe = self.config.moe
    y_BLD, stats = jnp.zeros_like(u_BLD), None
    if moe.num_experts:
      router = _ROUTERS[moe.router](self.config, name='router')
      gates_BLK, experts_BLK, stats = router(u_BLD, token_ids_BL, is_token_BL)
      y_BLD += Experts(self.config, name='experts')(u_BLD, gates_BLK, experts_BLK, is_token_BL)
    if moe.num_shared_experts:
      width = moe.num_shared_experts * moe.d_expert
      y_BLD += MLP(self.config, width, name='shared')(u_BLD)
    return y_BLD, stats
