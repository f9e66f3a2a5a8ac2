"""The routed FFN on a mesh whose expert axis splits the experts."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from moe.config import Config
from moe.ops.dispatch_plan import saveable
from moe.ops.routed_ffn import ExpertWeights, routed_ffn
from moe.parallel import mesh, sharding, zero
from moe.parallel.experts.capacity import Capacity
from moe.parallel.experts.exchange import AXIS, Rules, transport_of
from moe.parallel.experts.rounds import all_rounds
from moe.parallel.experts.telemetry import Exchange


def expert_parallel_ffn(
  x_BLD: jax.Array,
  gates_BLK: jax.Array,
  experts_BLK: jax.Array,
  is_token_BL: jax.Array,
  weights: ExpertWeights,
  stored: ExpertWeights,
  config: Config,
) -> tuple[jax.Array, Exchange]:
  """Σ_k gates[k] · FFN_experts[k](x), in model.dtype, and the exchange's telemetry.

  Args:
    x_BLD, gates_BLK, experts_BLK, is_token_BL: laid out by batch.
    experts_BLK: int32; E or more: no expert, which is not exchanged.
    is_token_BL: bool; False for padding, which is not exchanged.
    weights: of all E experts, by units of their width (`moe.layers.experts`).
    stored: how each matrix lies: split by expert, width (mesh.zero = 3) and hidden width.
  """
  dtype, devices, moe = jnp.dtype(config.model.dtype), mesh.size(AXIS), config.moe
  transport = transport_of(config.mesh.transport)
  run = functools.partial(routed_ffn, dtype=dtype, implementation=config.ops.implementation)

  def on_shard(x_BLD, gates_BLK, experts_BLK, is_token_BL, weights):
    x_TD, gates_TK, experts_TK = (
      a.reshape(-1, a.shape[-1]) for a in (x_BLD, gates_BLK, experts_BLK)
    )
    own = ExpertWeights(*(_own(w, lies, dtype) for w, lies in zip(weights, stored, strict=True)))
    capacity = Capacity.of(
      experts_TK.shape[0],
      moe.units_of_experts,
      moe.experts_per_token,
      devices,
      config.mesh.receive_buffer,
      all_tokens=transport == 'all_gather',
    )
    # Past the experts of zeros, too: those are on some device.
    no_expert = devices * own.gate_EDF.shape[0]
    is_choice_TK = is_token_BL.reshape(-1, 1) & (experts_TK < moe.num_units)
    experts_TK = saveable(jnp.where(is_choice_TK, experts_TK, no_expert))
    y_TD, exchange = all_rounds(x_TD, gates_TK, own, experts_TK, Rules(transport, capacity, run))
    if mesh.size('tensor') > 1:
      y_TD = lax.psum(y_TD, 'tensor')
    return y_TD.astype(dtype).reshape(x_BLD.shape), exchange

  batch, specs = sharding.spec('batch'), ExpertWeights(*(lies.spec for lies in stored))
  run_on_shards = sharding.per_shard(
    on_shard, (batch, batch, batch, batch, specs), (batch, sharding.spec())
  )
  return run_on_shards(x_BLD, gates_BLK, experts_BLK, is_token_BL, weights)


def _own(weights_EXY, stored, dtype):
  """This device's experts, of their whole width, from what it stores.

  Experts that cannot be dealt out evenly are stored by width, or whole at ZeRO's stage 1. They are
  dealt out here, and the last devices get experts of zeros.
  """
  if stored.split[0]:
    return zero.gathered(weights_EXY, stored, dtype)
  stage, devices, width = mesh.zero_stage(), mesh.size(AXIS), stored.axes.index('width')

  def deal(weights_EXY):
    weights_EXY = jnp.pad(weights_EXY, ((0, -weights_EXY.shape[0] % devices), (0, 0), (0, 0)))
    if stage == 1:
      here = weights_EXY.shape[0] // devices
      return lax.dynamic_slice_in_dim(weights_EXY, lax.axis_index(AXIS) * here, here)
    weights_EXY = lax.all_to_all(weights_EXY, AXIS, split_axis=0, concat_axis=width, tiled=True)
    return (
      lax.all_gather(weights_EXY, 'fsdp', axis=width, tiled=True)
      if mesh.size('fsdp') > 1
      else weights_EXY
    )

  return zero.in_compute_type(deal, weights_EXY, dtype)
