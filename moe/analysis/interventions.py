"""A trained model with its routing changed at evaluation:
the paper's Figure 4, Section 4.5 and Figure 5.

Every function is pure in (params, batch), to be jitted with the rest fixed; params may lie on a
mesh that is in use. K and the shared experts are changed in the config; masking reaches the routers
by the model's `moe.routers.Probe`, which training leaves at its default.

N MoE layers, B sequences, L tokens each, D model width, E routed experts,
K chosen by a token, M masked for it.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from moe.config import Config
from moe.data.packing import Batch
from moe.errors import UserError
from moe.intervention import Intervention, check
from moe.layers.moe_layer import Aside
from moe.model import Transformer
from moe.parallel.sharding import constrain
from moe.routers import ROUTERS, Probe
from moe.train_step import forward_of


class Choices(NamedTuple):
  """What every token chose in every MoE layer, best first."""

  experts_NBLK: jax.Array  # int32
  # float32, by the router's own convention: raw affinities over all E experts (Eq. 10),
  # 1 for a hash router.
  gates_NBLK: jax.Array
  is_token_BL: jax.Array  # bool; False: padding, whose choices say nothing

  def taken(self, is_counted_BL: jax.Array) -> jax.Array:
    """experts_NBLK, with −1 for tokens that do not count, and for experts that a token does not
    take: their gate is 0 (`moe.gate_mass`).
    """
    return jnp.where(is_counted_BL[None, ..., None] & (self.gates_NBLK > 0), self.experts_NBLK, -1)


def apply(config: Config, params: dict, intervention: Intervention) -> tuple[Config, dict, int]:
  """The config and the parameters with K and the shared experts changed, and M,
  which is for the `Probe`.

  Arrays stay as they are, wherever they lie. UserError for what this model cannot do.
  """
  moe = config.moe
  _check(config, intervention)
  moe = dataclasses.replace(moe, experts_per_token=intervention.chosen(moe))
  if intervention.without_shared:
    moe = dataclasses.replace(moe, num_shared_experts=0, shared_gate=False)
    blocks = params['moe_blocks']
    gone = 'shared', 'shared_gate'
    layer = {name: weights for name, weights in blocks['moe'].items() if name not in gone}
    params = params | {'moe_blocks': blocks | {'moe': layer}}
  return dataclasses.replace(config, moe=moe), params, intervention.masked(moe.num_experts)


def forward(
  config: Config, params: dict, batch: Batch, intervention: Intervention
) -> tuple[jax.Array, Aside]:
  """As `train_step.forward`, under an intervention: hidden_BLD in the compute type,
  and what the layers measured.
  """
  return _run(config, params, batch, intervention)


def routing(
  config: Config, params: dict, batch: Batch, intervention: Intervention | None = None
) -> Choices:
  """Every token's experts and gates; on a mesh each device has those of its own sequences."""
  check_routed(config)
  asked = intervention or Intervention()
  choices = _run(config, params, batch, asked, choices=True)[1].choices
  lay_out = lambda x: constrain(x, None, 'batch', None, None)
  return Choices(lay_out(choices.experts_BLK), lay_out(choices.gates_BLK), batch.segment_ids_BL > 0)


def shared_gates(config: Config, params: dict, batch: Batch) -> jax.Array:
  """float32 gate_NBL: σ(u · w) of every token, the weight of the shared experts in each MoE layer.
  UserError for a model without `moe.shared_gate`.
  """
  if not config.moe.shared_gate:
    raise UserError(f'{config.name} has moe.shared_gate=False: its shared experts have no gate')
  gate_NBL = _run(config, params, batch, Intervention(), choices=True)[1].shared_gate_BL
  return constrain(gate_NBL, None, 'batch', None)


def check_routed(config: Config) -> None:
  """Raises UserError for a model without routed experts."""
  if not config.has_routed_experts:
    raise UserError(f'{config.name} has no routed experts, so there are no choices to look at')


def _run(config, params, batch, intervention, choices=False):
  config, params, masked = apply(config, params, intervention)
  return forward_of(Transformer(config, Probe(masked, choices)), params, batch)


def _check(config, intervention):
  check(config, intervention)
  if not config.moe.num_experts:
    return
  can = ROUTERS[config.moe.router].interventions
  for field in dataclasses.fields(intervention):
    value = getattr(intervention, field.name)
    if value != field.default and field.name not in can:
      raise UserError(
        f'{field.name}={value} needs a router that allows it, and moe.router is '
        f"'{config.moe.router}', which allows {', '.join(can)}: leave it {field.default}"
      )
