"""The routed experts: their weights, and the op that runs them."""

import jax
from flax import linen as nn

from moe.config import Config
from moe.layers import initializers
from moe.metrics.telemetry import Reading, Telemetry
from moe.ops.routed_ffn import ExpertWeights
from moe.parallel.expert_parallel import expert_parallel_ffn


class Experts(nn.Module):
  """E SwiGLU experts of hidden width F; each token goes through K of them, none is ever dropped."""

  config: Config

  @nn.compact
  def __call__(
    self, x_BLD: jax.Array, gates_BLK: jax.Array, experts_BLK: jax.Array, is_token_BL: jax.Array
  ) -> tuple[jax.Array, Telemetry]:
    """Σ_k gates[k] · FFN_experts[k](x), in x's type; the exchange's worst, on a mesh that splits the experts."""
    moe, d = self.config.moe, self.config.model.d_model
    e, f = moe.num_experts, moe.d_expert
    matrix = lambda name, *shape: self.param(name, initializers.matrix(self.config), shape)
    weights = ExpertWeights(matrix('gate', e, d, f), matrix('up', e, d, f), matrix('down', e, f, d))
    y_BLD, exchange = expert_parallel_ffn(
      x_BLD, gates_BLK, experts_BLK, is_token_BL, weights, self.config
    )
    measured = exchange._asdict() if exchange is not None else {}
    return y_BLD, {f'exchange_{name}': Reading(value, 'max') for name, value in measured.items()}
