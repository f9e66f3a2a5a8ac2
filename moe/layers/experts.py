"""The routed experts: their weights, and the op that runs them."""

import jax
from flax import linen as nn

from moe.config import Config
from moe.metrics.telemetry import Reading, Telemetry
from moe.ops.routed_ffn import ExpertWeights
from moe.parallel.expert_parallel import EXPERT_AXES, expert_parallel_ffn
from moe.parallel.sharding import param


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
    gate_axes, up_axes, down_axes = EXPERT_AXES
    weights = ExpertWeights(
      param(self, 'gate', (e, d, f), gate_axes),
      param(self, 'up', (e, d, f), up_axes),
      param(self, 'down', (e, f, d), down_axes),
    )
    y_BLD, exchange = expert_parallel_ffn(
      x_BLD, gates_BLK, experts_BLK, is_token_BL, weights, self.config
    )
    measured = exchange._asdict() if exchange is not None else {}
    return y_BLD, {f'exchange_{name}': Reading(value, 'max') for name, value in measured.items()}
