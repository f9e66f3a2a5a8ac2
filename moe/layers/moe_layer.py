"""The DeepSeekMoE layer: shared experts beside fine-grained routed ones
(Eq. 9, without its residual).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from moe.config import Config, MoEConfig
from moe.layers.experts import Experts
from moe.layers.mlp import MLP
from moe.metrics.telemetry import Reading, Telemetry
from moe.ops.router import RoutingStats
from moe.parallel import sharding
from moe.routers import ROUTERS, Forced, Probe


class Choices(NamedTuple):
  """What every token chose, best first. Padding has choices, too, which mean nothing."""

  experts_BLK: jax.Array  # int32
  gates_BLK: jax.Array  # float32
  affinities_BLE: jax.Array | None = None  # float32, over all experts, where a probe asks


class Aside(NamedTuple):
  """What a layer returns beside its output. A stack of N layers adds a
  leading axis N to every array.
  """

  stats: RoutingStats | None  # for the balance terms; None where nothing is routed
  telemetry: Telemetry
  choices: Choices | None = None  # where a probe asks for them
  shared_gate_BL: jax.Array | None = None  # float32, beside the choices (`moe.shared_gate`)
  # The residual stream after the block, dense or MoE, where a probe asks for it. A whole model of N
  # blocks also has the stream before the first one: N + 1 entries.
  hidden_BLD: jax.Array | None = None


class Parameters(NamedTuple):
  """Parameter counts of one layer."""

  router: int  # and the shared experts' gate
  experts: int  # routed and shared
  idle_experts: int  # how many of these one token leaves unused


class MoELayer(nn.Module):
  """Σ shared FFN(u) + Σ gate · routed FFN(u). Shared experts are stored as one FFN of their joint
  width. Their sum has no gate, or with `moe.shared_gate` the gate σ(u · w).
  """

  config: Config
  probe: Probe = Probe()

  @nn.compact
  def __call__(
    self,
    u_BLD: jax.Array,
    token_ids_BL: jax.Array,
    is_token_BL: jax.Array,
    forced: Forced | None = None,
  ) -> tuple[jax.Array, Aside]:
    """The layer's output, and what it measured. forced: choices in place of the router's."""
    moe = self.config.moe
    y_BLD, aside = jnp.zeros_like(u_BLD), Aside(None, {})
    if moe.num_experts:
      router = ROUTERS[moe.router](self.config, self.probe, name='router')
      routing, affinities_BLE = router.route(u_BLD, token_ids_BL, is_token_BL, forced)
      gates_BLK, experts_BLK, stats = routing
      routed_BLD, exchange = Experts(self.config, name='experts')(
        u_BLD, gates_BLK, experts_BLK, is_token_BL
      )
      y_BLD += routed_BLD
      choices = Choices(experts_BLK, gates_BLK, affinities_BLE) if self.probe.choices else None
      telemetry = exchange | router.telemetry(stats)
      if moe.gate_mass < 1:
        taken = stats.counts_BE.sum() / jnp.maximum(is_token_BL.sum(), 1)
        telemetry |= {'experts_taken': Reading(taken, 'mean')}
      if moe.is_unequal:
        width = routed_width(stats.counts_BE, is_token_BL.sum(), moe)
        telemetry |= {'routed_width': Reading(width, 'mean')}
      aside = Aside(stats._replace(excess_BEH=None), telemetry, choices)
    if moe.num_shared_experts:
      width = moe.num_shared_experts * moe.d_expert
      shared_BLD = MLP(self.config, width, name='shared')(u_BLD)
      if moe.shared_gate:
        gate_BL = self._shared_gate(u_BLD)
        shared_BLD = (gate_BL[..., None] * shared_BLD).astype(shared_BLD.dtype)
        mean = jnp.where(is_token_BL, gate_BL, 0).sum() / jnp.maximum(is_token_BL.sum(), 1)
        aside = aside._replace(
          telemetry=aside.telemetry | {'shared_gate': Reading(mean, 'mean')},
          shared_gate_BL=gate_BL if self.probe.choices else None,
        )
      y_BLD += shared_BLD
    return y_BLD, aside

  def _shared_gate(self, u_BLD):
    """σ(u · w), float32."""
    w_D = sharding.param(self, 'shared_gate', (self.config.model.d_model,), (None,))
    logits_BL = jnp.einsum(
      'BLD,D->BL', u_BLD.astype(jnp.float32), w_D, precision=lax.Precision.HIGHEST
    )
    return jax.nn.sigmoid(logits_BL)

  @classmethod
  def num_params(cls, config: Config) -> Parameters:
    """A token uses the router, the shared experts, and K of the routed ones. Where experts differ
    in width, these K count as experts of mean width, as if all were chosen equally often.
    """
    moe = config.moe
    one = MLP.num_params(config, moe.d_expert)
    router = ROUTERS[moe.router].num_params(config) if moe.num_experts else 0
    router += config.model.d_model if moe.shared_gate else 0
    experts = one * (moe.num_shared_experts + moe.num_units)
    used = round(one * moe.experts_per_token * moe.mean_units)
    return Parameters(router, experts, one * moe.num_units - used)


def routed_width(counts_BE: jax.Array, tokens: jax.Array, moe: MoEConfig) -> jax.Array:
  """float32: the hidden width of the routed experts that a token goes through, mean over tokens."""
  # Divided first: tokens times width may overflow int32.
  share_E = counts_BE.sum(axis=0) / jnp.maximum(tokens, 1)
  return (share_E * (moe.d_expert * np.array(moe.units_of_experts))).sum()
