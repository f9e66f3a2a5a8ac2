"""The routed experts: their weights, and the op that runs them."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from moe.config import ModelConfig, MoEConfig
from moe.layers import initializers
from moe.ops.plan import make_plan
from moe.ops.routed_ffn import ExpertWeights, routed_ffn

# Under rematerialisation the plan is kept: a few integers an assignment, and backward follows forward's very routing.
KEEP_PLAN = jax.checkpoint_policies.save_only_these_names('dispatch_plan')


class Experts(nn.Module):
  """E SwiGLU experts of hidden width F; each token goes through K of them, none is ever dropped."""

  config: ModelConfig
  moe: MoEConfig
  implementation: str

  @nn.compact
  def __call__(self, x_BLD: jax.Array, gates_BLK: jax.Array, experts_BLK: jax.Array) -> jax.Array:
    """Σ_k gates[k] · FFN_experts[k](x), in x's type."""
    e, d, f = self.moe.num_experts, self.config.d_model, self.moe.d_expert
    matrix = lambda name, *shape: self.param(name, initializers.matrix(self.config), shape)
    weights = ExpertWeights(matrix('gate', e, d, f), matrix('up', e, d, f), matrix('down', e, f, d))
    tokens = lambda x_BLN: x_BLN.reshape(-1, x_BLN.shape[-1])
    with jax.named_scope('plan'):
      plan = jax.tree.map(lambda x: checkpoint_name(x, 'dispatch_plan'), make_plan(tokens(experts_BLK), e))
    y_TD = routed_ffn(
      tokens(x_BLD),
      tokens(gates_BLK),
      plan,
      weights,
      dtype=jnp.dtype(self.config.dtype),
      implementation=self.implementation,
    )
    return y_TD.reshape(x_BLD.shape)
