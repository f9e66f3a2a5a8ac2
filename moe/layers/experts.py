"""The routed experts: their weights, and the op that runs them.

An expert n times as wide as the others is n units of their width, side by side, which all get its
tokens and its gate. Weights are stored by unit; only units are run or exchanged.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from moe.config import Config, MoEConfig
from moe.layers import tuned
from moe.metrics.telemetry import Reading, Telemetry
from moe.ops.dispatch_plan import make_plan, saveable
from moe.ops.routed_ffn import (
  FEW,
  ExpertWeights,
  routed_ffn,
  routed_ffn_of_some,
  routed_ffn_of_stack,
)
from moe.parallel import mesh, sharding, zero
from moe.parallel.experts.ffn import expert_parallel_ffn

EXPERT_AXES = ExpertWeights(
  ('experts', 'width', 'hidden'), ('experts', 'width', 'hidden'), ('experts', 'hidden', 'width')
)

# int32: the module's layer, where its weights are those of all layers with a leading axis. Decoding
# on accelerators gets them like this (`moe.generation.weights`).
LAYER = 'layer'


class Experts(nn.Module):
  """E SwiGLU experts. Each token goes through K of them or fewer; none is ever dropped."""

  config: Config

  @nn.compact
  def __call__(
    self, x_BLD: jax.Array, gates_BLK: jax.Array, experts_BLK: jax.Array, is_token_BL: jax.Array
  ) -> tuple[jax.Array, Telemetry]:
    """Σ_k gates[k] · FFN_experts[k](x), in model.dtype, and telemetry.

    Where the mesh splits the experts, telemetry measures the exchange, as the worst over devices;
    else it is empty. Where tokens may take fewer experts, a gate of 0 costs no computation.

    Args:
      is_token_BL: bool; False for padding, which is not exchanged.
    """
    moe, d = self.config.moe, self.config.model.d_model
    e, f = moe.num_units, moe.d_expert
    gates_BLK, experts_BLK = in_units(gates_BLK, experts_BLK, moe)
    if self.has_variable('params', LAYER):
      stacks = ExpertWeights(*(self.get_variable('params', name) for name in tuned.MATRICES))
      layer = self.get_variable('params', LAYER)
      return _in_stacks(x_BLD, gates_BLK, experts_BLK, stacks, layer, self.config), {}
    if takes_fewer(moe):
      experts_BLK = jnp.where(gates_BLK != 0, experts_BLK, e)
    gate_axes, up_axes, down_axes = EXPERT_AXES
    weights = ExpertWeights(
      sharding.param(self, 'gate', (e, d, f), gate_axes),
      sharding.param(self, 'up', (e, d, f), up_axes),
      sharding.param(self, 'down', (e, f, d), down_axes),
    )
    weights = tuned.with_chosen(self, weights)
    stored = stored_experts(weights)
    if mesh.size('expert') == 1:
      return _here(x_BLD, gates_BLK, experts_BLK, weights, stored, self.config), {}
    y_BLD, exchange = expert_parallel_ffn(
      x_BLD, gates_BLK, experts_BLK, is_token_BL, weights, stored, self.config
    )
    measured = exchange._asdict()
    return y_BLD, {f'exchange_{name}': Reading(value, 'max') for name, value in measured.items()}


def in_units(
  gates_BLK: jax.Array, experts_BLK: jax.Array, moe: MoEConfig
) -> tuple[jax.Array, jax.Array]:
  """The units of each choice, with their gates: all chosen experts' first units, then their second
  ones, …. Where an expert has no more units, `moe.num_units` with a gate of 0.
  """
  none, factor, wide = moe.num_units, moe.max_units, moe.wide_experts
  if factor == 1:
    return gates_BLK, experts_BLK
  first_BLK = experts_BLK + (factor - 1) * jnp.minimum(experts_BLK, wide)
  more = (jnp.where(experts_BLK < wide, first_BLK + n, none) for n in range(1, factor))
  units_BLK = jnp.concatenate([first_BLK, *more], axis=-1)
  gates_BLK = jnp.concatenate([gates_BLK] * factor, axis=-1)
  return jnp.where(units_BLK < none, gates_BLK, 0), units_BLK


def takes_fewer(moe: MoEConfig) -> bool:
  """Whether tokens differ in how many units they go through."""
  return moe.gate_mass < 1 or moe.is_unequal


def can_stay_stacked(config: Config) -> bool:
  """Whether, on the mesh in use, a layer's experts can be read in place from the stack of layers:
  each device has its part of every expert and gathers nothing, and all experts are equally wide.
  """
  if config.moe.is_unequal:
    return False
  return mesh.size('expert') == 1 and (mesh.zero_stage() != 3 or mesh.size('fsdp') == 1)


def stored_experts(weights: ExpertWeights) -> ExpertWeights:
  """`Stored` of each weight, on the mesh in use."""
  lies = (sharding.stored(axes, w.shape) for axes, w in zip(EXPERT_AXES, weights, strict=True))
  return ExpertWeights(*lies)


def _here(x_BLD, gates_BLK, experts_BLK, weights, stored, config):
  """Each device runs its own tokens through all experts, or its part of their hidden width."""
  dtype = jnp.dtype(config.model.dtype)

  def run(x_TD, gates_TK, experts_TK, weights):
    whole = (zero.gathered(w, lies, dtype) for w, lies in zip(weights, stored, strict=True))
    weights = ExpertWeights(*whole)
    ffn = functools.partial(routed_ffn, dtype=dtype, implementation=config.ops.implementation)
    if not takes_fewer(config.moe):
      return ffn(x_TD, gates_TK, _plan(experts_TK, config), weights)
    of_rows = functools.partial(ffn, few=x_TD.shape[0] <= FEW)
    return routed_ffn_of_some(x_TD, gates_TK, saveable(experts_TK), weights, gates_TK.size, of_rows)

  return _on_shards(run, x_BLD, gates_BLK, experts_BLK, weights, stored, config)


def _in_stacks(x_BLD, gates_BLK, experts_BLK, stacks, layer, config):
  """As `_here`, with one layer's weights read from all layers'. Needs `can_stay_stacked`."""
  lies = (
    sharding.stored((None, *axes), w.shape) for axes, w in zip(EXPERT_AXES, stacks, strict=True)
  )

  def run(x_TD, gates_TK, experts_TK, stacks):
    weights = jax.tree.map(lambda w: w.reshape(-1, *w.shape[2:]), stacks)
    options = {'dtype': config.model.dtype, 'implementation': config.ops.implementation}
    first, plan = layer * config.moe.num_units, _plan(experts_TK, config)
    return routed_ffn_of_stack(x_TD, gates_TK, plan, weights, first, **options)

  return _on_shards(run, x_BLD, gates_BLK, experts_BLK, stacks, ExpertWeights(*lies), config)


def _plan(experts_TK, config):
  return saveable(make_plan(experts_TK, config.moe.num_units))


def _on_shards(run, x_BLD, gates_BLK, experts_BLK, weights, stored, config):
  """run(x_TD, gates_TK, experts_TK, weights) on every device, with its own tokens and its part of
  the weights. Sums over devices that split the hidden width.
  """

  def on_shard(x_BLD, gates_BLK, experts_BLK, weights):
    x_TD, gates_TK, experts_TK = (
      a.reshape(-1, a.shape[-1]) for a in (x_BLD, gates_BLK, experts_BLK)
    )
    y_TD = run(x_TD, gates_TK, experts_TK, weights)
    if mesh.size('tensor') > 1:
      y_TD = lax.psum(y_TD, 'tensor')
    return y_TD.astype(config.model.dtype).reshape(x_BLD.shape)

  batch, specs = sharding.spec('batch'), ExpertWeights(*map(sharding.specs, weights, stored))
  run_on_shards = sharding.per_shard(on_shard, (batch, batch, batch, specs), batch)
  return run_on_shards(x_BLD, gates_BLK, experts_BLK, weights)
