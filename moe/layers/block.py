"""One pre-norm Transformer block: x + attention(norm x), then x + FFN(norm x)."""

import jax
from flax import linen as nn

from moe.config import Config
from moe.layers.attention import Attention, KVCache
from moe.layers.mlp import MLP
from moe.layers.moe_layer import MoELayer
from moe.layers.norm import RMSNorm
from moe.ops.router import RoutingStats
from moe.parallel import mesh
from moe.parallel.expert_parallel import KEEP_PLAN


class Block(nn.Module):
  """`dense` blocks have one FFN of width `model.d_ff`, the others a MoE layer."""

  config: Config
  dense: bool

  @nn.compact
  def __call__(
    self,
    x_BLD: jax.Array,
    cache: KVCache | None,
    token_ids_BL: jax.Array,
    positions_BL: jax.Array,
    segment_ids_BL: jax.Array,
  ) -> tuple[jax.Array, tuple[RoutingStats | None, KVCache | None]]:
    """Shaped for `nn.scan`: x is the carry, the cache is scanned, statistics and cache are stacked."""
    x_BLD = mesh.constrain(x_BLD, 'batch', None, None)
    config, model = self.config, self.config.model
    norm = lambda name: RMSNorm(config, name=name)
    attended_BLD, cache = Attention(config, name='attention')(
      norm('attention_norm')(x_BLD), positions_BL, segment_ids_BL, cache
    )
    x_BLD += attended_BLD
    u_BLD = norm('ffn_norm')(x_BLD)
    if self.dense:
      return x_BLD + MLP(config, model.d_ff, name='mlp')(u_BLD), (None, cache)
    layer = (
      nn.remat(MoELayer, policy=KEEP_PLAN, prevent_cse=False) if model.remat == 'moe' else MoELayer
    )
    y_BLD, stats = layer(config, name='moe')(u_BLD, token_ids_BL, segment_ids_BL > 0)
    return x_BLD + y_BLD, (stats, cache)
