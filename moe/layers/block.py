"""One pre-norm Transformer block: x + attention(norm x), then x + FFN(norm x)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax import lax

from moe.config import Config, ModelConfig
from moe.layers.attention import Attention, KVCache, SharedContext
from moe.layers.mlp import MLP
from moe.layers.moe_layer import Aside, MoELayer
from moe.layers.norm import RMSNorm
from moe.ops.dispatch_plan import SAVE_PLAN
from moe.parallel import sharding
from moe.parallel.scopes import runs
from moe.routers import Forced, Probe


@struct.dataclass
class Presence:
  """Whether a block exists: a pipeline's last stages may have fewer blocks than the others."""

  is_there: jax.Array  # bool, one per block where blocks are stacked
  share: float = struct.field(pytree_node=False)  # of all stages' blocks, how many exist


def recomputed(module: type[nn.Module], model: ModelConfig, policy: Callable) -> type[nn.Module]:
  """A stack's layer module, recomputed in backward except for what `policy` saves."""
  # In a loop over layers XLA cannot merge the recomputation with the first computation; in
  # unrolled layers it would.
  return nn.remat(module, policy=policy, prevent_cse=model.unroll > 1)


class Block(nn.Module):
  """`dense` blocks have one FFN of width `model.d_ff`, the others a MoE layer."""

  config: Config
  dense: bool
  probe: Probe = Probe()

  @nn.compact
  def __call__(
    self,
    x_BLD: jax.Array,
    cache: KVCache | SharedContext | None,
    presence: Presence | None,
    token_ids_BL: jax.Array,
    positions_BL: jax.Array,
    segment_ids_BL: jax.Array,
    forced: Forced | None = None,
  ) -> tuple[jax.Array, tuple[Aside, KVCache | None]]:
    """Shaped for `nn.scan`: x is the carry; cache, presence and forced choices are scanned over;
    measurements and the cache are stacked.

    presence: None where every block exists.
    """
    if presence is not None:
      return self._if_there(presence, x_BLD, token_ids_BL, positions_BL, segment_ids_BL)
    x_BLD = sharding.constrain(x_BLD, 'batch', None, None)
    config, model = self.config, self.config.model
    norm = lambda name: RMSNorm(config, name=name)
    attended_BLD, cache = Attention(config, self.probe, name='attention')(
      norm('attention_norm')(x_BLD), positions_BL, segment_ids_BL, cache
    )
    x_BLD += attended_BLD
    u_BLD = norm('ffn_norm')(x_BLD)
    if self.dense:
      x_BLD += MLP(config, model.d_ff, name='mlp')(u_BLD)
      return x_BLD, (self._shown(Aside(None, {}), x_BLD), cache)
    layer = recomputed(MoELayer, model, SAVE_PLAN) if model.remat == 'moe' else MoELayer
    is_token_BL = segment_ids_BL > 0
    y_BLD, aside = layer(config, self.probe, name='moe')(u_BLD, token_ids_BL, is_token_BL, forced)
    x_BLD += y_BLD
    return x_BLD, (self._shown(aside, x_BLD), cache)

  def _shown(self, aside, x_BLD):
    return aside._replace(hidden_BLD=x_BLD) if self.probe.hidden else aside

  def _if_there(self, presence, x_BLD, *batch):
    """Runs the block, or returns x as it is and zero measurements. Reads existing parameters, so it
    cannot run at initialisation.
    """
    params, block = (
      self.variables['params'],
      Block(self.config, self.dense, self.probe, parent=None),
    )
    run = lambda x_BLD: block.apply({'params': params}, x_BLD, None, None, *batch)
    shapes = jax.eval_shape(run, x_BLD)[1]
    skip = lambda x_BLD: (x_BLD, jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes))
    with runs(1 - presence.share, presence.share):
      return lax.cond(presence.is_there, run, skip, x_BLD)
