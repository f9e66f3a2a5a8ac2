"""The DeepSeekMoE layer: shared experts beside fine-grained routed ones (Eq. 9, without its residual)."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from moe.config import MeshConfig, ModelConfig, MoEConfig
from moe.layers.experts import Experts
from moe.layers.mlp import MLP
from moe.layers.router import HashRouter, SoftmaxRouter
from moe.ops.router import RoutingStats

_ROUTERS = {'softmax': SoftmaxRouter, 'hash': HashRouter}


class MoELayer(nn.Module):
  """Σ shared FFN(u) + Σ gate · routed FFN(u). Shared experts are ungated and stored as one FFN of their joint width."""

  config: ModelConfig
  moe: MoEConfig
  mesh: MeshConfig
  implementation: str

  @nn.compact
  def __call__(
    self, u_BLD: jax.Array, token_ids_BL: jax.Array, is_token_BL: jax.Array
  ) -> tuple[jax.Array, RoutingStats | None]:
    """The layer's output, and the routing statistics (None where there are no routed experts)."""
    y_BLD, stats = jnp.zeros_like(u_BLD), None
    if self.moe.num_experts:
      router = _ROUTERS[self.moe.router](
        self.config, self.moe, self.implementation, self.mesh.zero, name='router'
      )
      gates_BLK, experts_BLK, stats = router(u_BLD, token_ids_BL, is_token_BL)
      y_BLD += Experts(self.config, self.moe, self.mesh, self.implementation, name='experts')(
        u_BLD, gates_BLK, experts_BLK, is_token_BL
      )
    if self.moe.num_shared_experts:
      width = self.moe.num_shared_experts * self.moe.d_expert
      y_BLD += MLP(self.config, width, self.mesh.zero, name='shared')(u_BLD)
    return y_BLD, stats
