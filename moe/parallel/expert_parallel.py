"""Expert parallelism: the routed FFN with every expert on one device of the mesh's expert axis, exact and dropless.

Each device plans its own tokens, sends every token once to each device that holds some of its experts, runs its own
experts on what arrives, and returns one sum a token. Room for arrivals is a fixed multiple of the balanced load. What
does not fit comes in further rounds of the same exchange until nothing is left, in backward as in forward; how many,
is the same on every device. One round is the rule: it keeps its activations, later ones are computed again in backward.
Padding goes nowhere: it takes no room and no products, and gets zeros.

Of one device: T tokens, K choices, P devices along the expert axis, E experts in all and G = ⌈E / P⌉ here, D width,
c slots from one device to another in one round, S = P · c slots to send or to receive, A assignments that fit.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from moe.config import Config
from moe.errors import UserError
from moe.ops.dispatch_plan import DispatchPlan, make_plan, sort_assignments
from moe.ops.implementation import platform
from moe.ops.routed_ffn import ExpertWeights, routed_ffn
from moe.parallel import mesh, sharding, zero
from moe.parallel.compiler import has_ragged_exchange
from moe.parallel.scopes import further_rounds

_AXIS = 'expert'
# Under rematerialisation the plan is kept: a few integers an assignment, and backward follows forward's very routing.
KEEP_PLAN = jax.checkpoint_policies.save_only_these_names('dispatch_plan')
EXPERT_AXES = ExpertWeights(
  ('experts', 'width', 'hidden'), ('experts', 'width', 'hidden'), ('experts', 'hidden', 'width')
)


class Exchange(NamedTuple):
  """Telemetry of one layer's exchange, over all devices; of real tokens only."""

  rounds: jax.Array  # int32: of the exchange; 1 unless routing is lopsided
  buffer_share: (
    jax.Array
  )  # float32: fullest device's share of its room for tokens, or assignments, in the first round
  device_load: (
    jax.Array
  )  # float32: assignments of the busiest device over the mean; 0 where there are none


class Capacity(NamedTuple):
  """Room for one round, from one device to another. Whole tokens: a token's assignments arrive together."""

  tokens: int  # c
  assignments: int

  @classmethod
  def of(
    cls, tokens: int, experts: int, per_token: int, devices: int, buffer: float, everything: bool
  ) -> 'Capacity':
    """`buffer` times what the fullest device expects when every expert is equally likely.

    experts: E, without those of zeros that fill up the last devices: with 4 on 8, half the devices get everything.
    everything: room for every token.
    """
    here = max(sharding.shard_sizes(experts, devices))
    reached, most = _share_of_tokens(experts, per_token, here), min(per_token, here)
    rows = tokens if everything else min(tokens, math.ceil(buffer * tokens * reached))
    assignments = min(
      tokens * most, max(most, math.ceil(buffer * tokens * per_token * here / experts))
    )
    return cls(max(rows, 1), max(assignments, 1))


def expected_fill(tokens: int, experts: int, per_token: int, devices: int, buffer: float) -> float:
  """Of the room for one round, what is used when every expert is equally likely: what a ragged exchange sends of it.

  A mean over devices: 1 / `buffer` where all hold as many experts, but more where that room would hold more than all
  of a device's `tokens`.
  """
  room = Capacity.of(tokens, experts, per_token, devices, buffer, everything=False).tokens
  shares = [
    _share_of_tokens(experts, per_token, here) for here in sharding.shard_sizes(experts, devices)
  ]
  return tokens * sum(shares) / devices / room


def _share_of_tokens(experts, per_token, here):
  """Of all tokens, those that choose one of `here` given experts, when every expert is equally likely."""
  return 1 - math.comb(experts - here, per_token) / math.comb(experts, per_token)


def expert_parallel_ffn(
  x_BLD: jax.Array,
  gates_BLK: jax.Array,
  experts_BLK: jax.Array,
  is_token_BL: jax.Array,
  weights: ExpertWeights,
  config: Config,
) -> tuple[jax.Array, Exchange | None]:
  """Σ_k gates[k] · FFN_experts[k](x), in model.dtype, and the exchange's telemetry (None if experts are not split).

  Args:
    x_BLD, gates_BLK, experts_BLK, is_token_BL: laid out by batch.
    is_token_BL: bool; False for padding, which nobody reads: it is exchanged nowhere, computed where nothing is split.
    weights: of all E experts, laid out by expert, width (mesh.zero = 3) and hidden width.
  """
  split, dtype = mesh.size(_AXIS) > 1, jnp.dtype(config.model.dtype)
  transport = _transport(config.mesh.transport) if split else ''

  def on_shard(x_BLD, gates_BLK, experts_BLK, is_token_BL, weights):
    x_TD, gates_TK, experts_TK = (
      a.reshape(-1, a.shape[-1]) for a in (x_BLD, gates_BLK, experts_BLK)
    )
    own = (_weights_here(w, lies, dtype) for w, lies in zip(weights, stored, strict=True))
    weights = ExpertWeights(*own)
    run = functools.partial(routed_ffn, dtype=dtype, implementation=config.ops.implementation)
    if split:
      (tokens, per_token), devices = experts_TK.shape, mesh.size(_AXIS)
      everything = transport == 'all_gather'
      capacity = Capacity.of(
        tokens, experts_count, per_token, devices, config.mesh.receive_buffer, everything
      )
      nobody = (
        devices * weights.gate_EDF.shape[0]
      )  # past the experts of zeros, too, which are on some device
      experts_TK = _kept(jnp.where(is_token_BL.reshape(-1, 1), experts_TK, nobody))
      y_TD, exchange = _all_rounds(
        x_TD, gates_TK, weights, experts_TK, _Rules(transport, capacity, run)
      )
    else:
      y_TD, exchange = run(x_TD, gates_TK, _kept(make_plan(experts_TK, experts_count)), weights), ()
    if mesh.size('tensor') > 1:
      y_TD = lax.psum(y_TD, 'tensor')
    return y_TD.astype(dtype).reshape(x_BLD.shape), exchange

  experts_count, batch = weights.gate_EDF.shape[0], sharding.spec('batch')
  stored = [sharding.stored(a, w.shape) for a, w in zip(EXPERT_AXES, weights, strict=True)]
  specs = ExpertWeights(*(lies.spec for lies in stored))
  run_on_shards = sharding.per_shard(
    on_shard, (batch, batch, batch, batch, specs), (batch, sharding.spec())
  )
  y_BLD, exchange = run_on_shards(x_BLD, gates_BLK, experts_BLK, is_token_BL, weights)
  return y_BLD, exchange if split else None


def _weights_here(weights_EXY, stored, dtype):
  """This device's experts, of their whole width, from what it stores.

  Experts that cannot be dealt out evenly are stored by width: dealt out here, some devices get one of zeros.
  """
  if stored.split[0]:
    return zero.gathered(weights_EXY, stored, dtype)
  stage, devices, width = mesh.zero_stage(), mesh.size(_AXIS), stored.axes.index('width')

  def deal(weights_EXY):
    weights_EXY = jnp.pad(weights_EXY, ((0, -weights_EXY.shape[0] % devices), (0, 0), (0, 0)))
    if stage == 1:
      here = weights_EXY.shape[0] // devices
      return lax.dynamic_slice_in_dim(weights_EXY, lax.axis_index(_AXIS) * here, here)
    weights_EXY = lax.all_to_all(weights_EXY, _AXIS, split_axis=0, concat_axis=width, tiled=True)
    return (
      lax.all_gather(weights_EXY, 'fsdp', axis=width, tiled=True)
      if mesh.size('fsdp') > 1
      else weights_EXY
    )

  return zero.in_compute_type(deal, weights_EXY, dtype)


def _kept(tree):
  return jax.tree.map(lambda x: checkpoint_name(x, 'dispatch_plan'), tree)


def _transport(requested):
  """'auto' decided; UserError where the machine lacks it."""
  ragged = platform() != 'cpu' and has_ragged_exchange()
  if requested == 'auto':
    return 'ragged' if ragged else 'padded'
  if requested == 'ragged' and not ragged:
    raise UserError(
      'mesh.transport=ragged needs GPUs, or a TPU slice that has it (v5e: 16 chips at most; not CPUs): '
      'use auto, padded or all_gather'
    )
  return requested


class _Moves(NamedTuple):
  """Rows copied from sources to slots: at most K slots a source, at most one source a slot."""

  source_S: jax.Array  # int32: number of sources where a slot stays empty
  slot_TK: jax.Array  # int32: number of slots where there is none


@jax.custom_vjp
def _spread(rows_TD, moves):
  """slots_SD: every slot its source's row, zero where empty."""
  return _take(rows_TD, moves.source_S)


@jax.custom_vjp
def _collect(slots_SD, moves):
  """rows_TD, float32: Σ_k of a source's slots, as K gathers: the transpose of `_spread`."""
  gathered = (
    _take(slots_SD, moves.slot_TK[:, k]).astype(jnp.float32) for k in range(moves.slot_TK.shape[1])
  )
  return functools.reduce(jnp.add, gathered)


def _types(rows, moves):
  return moves, jnp.zeros(0, rows.dtype)  # zero-sized: the type of the gradient


_spread.defvjp(
  lambda rows, moves: (_spread(rows, moves), _types(rows, moves)),
  lambda kept, d: (_collect(d, kept[0]).astype(kept[1].dtype), None),
)
_collect.defvjp(
  lambda slots, moves: (_collect(slots, moves), _types(slots, moves)),
  lambda kept, d: (_spread(d.astype(kept[1].dtype), kept[0]), None),
)


def _take(rows_ND, index):
  """rows[index], zero where index is N. What lies beside a run of rows may be anything, NaN too."""
  n = rows_ND.shape[0]
  gathered = rows_ND.at[jnp.minimum(index, n - 1)].get(mode='promise_in_bounds')
  return jnp.where((index < n)[:, None], gathered, 0)


class _Demand(NamedTuple):
  """What a device's tokens ask of every device along the axis."""

  device_TK: jax.Array  # int32: device of a choice; P for nobody's
  assignments_TP: jax.Array  # int32: choices of a token on a device
  position_TP: jax.Array  # int32: tokens before this one that need the device, too
  total_P: jax.Array  # int32: tokens that need it


def _demand(experts_TK, devices, here):
  device_TK = experts_TK // here
  assignments_TP = (device_TK[:, :, None] == jnp.arange(devices)[None, None]).sum(
    axis=1, dtype=jnp.int32
  )
  needs_TP = (assignments_TP > 0).astype(jnp.int32)
  return _Demand(
    device_TK, assignments_TP, jnp.cumsum(needs_TP, axis=0) - needs_TP, needs_TP.sum(axis=0)
  )


def _window(demand, start_P, capacity):
  """Which tokens go where in the round that begins with each device's start_P-th token: as many as fit."""
  needs_TP = demand.assignments_TP > 0
  waiting_TP = needs_TP & (demand.position_TP >= start_P[None])
  assigned_TP = jnp.cumsum(jnp.where(waiting_TP, demand.assignments_TP, 0), axis=0)
  fits_TP = (demand.position_TP - start_P[None] < capacity.tokens) & (
    assigned_TP <= capacity.assignments
  )
  return waiting_TP & fits_TP


class _Rules(NamedTuple):
  """What every round of a layer's exchange shares."""

  transport: str
  capacity: Capacity
  run: Callable  # the routed FFN of an implementation

  def following(self, demand, start_P, window_TP):
    """Where the round after that of the window begins, and whether any device then still has something to send."""
    start_P = start_P + window_TP.sum(axis=0, dtype=jnp.int32)
    return start_P, lax.pmax((start_P < demand.total_P).any(), mesh.BATCH_AXES)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _all_rounds(x_TD, gates_TK, weights, experts_TK, rules):
  """(float32 Σ_k gate · FFN(x), Exchange): rounds until nothing is left."""
  return _forward(x_TD, gates_TK, weights, experts_TK, rules)[0]


def _first_round(weights, experts_TK, capacity):
  """(demand, start_P, window_TP)"""
  demand = _demand(experts_TK, lax.axis_size(_AXIS), weights.gate_EDF.shape[0])
  start_P = jnp.zeros_like(demand.total_P)
  return demand, start_P, _window(demand, start_P, capacity)


def _forward(x_TD, gates_TK, weights, experts_TK, rules):
  demand, start_P, first_TP = _first_round(weights, experts_TK, rules.capacity)
  one_round = lambda window_TP, *operands: _round(*operands, experts_TK, demand, window_TP, rules)
  y_TD, pull = jax.vjp(functools.partial(one_round, first_TP), x_TD, gates_TK, weights)

  def again(state):
    start_P, _, rounds, y_TD = state
    window_TP = _window(demand, start_P, rules.capacity)
    y_TD += one_round(window_TP, x_TD, gates_TK, weights)
    return *rules.following(demand, start_P, window_TP), rounds + 1, y_TD

  state = *rules.following(demand, start_P, first_TP), jnp.int32(1), y_TD
  _, _, rounds, y_TD = _further_rounds(again, state)
  exchange = _telemetry(demand, first_TP, rounds, rules.capacity)
  return (y_TD, exchange), (pull, x_TD, gates_TK, weights, experts_TK)


def _backward(rules, residuals, cotangents):
  pull, *operands, experts_TK = residuals
  d_y_TD = cotangents[0]
  demand, start_P, first_TP = _first_round(operands[-1], experts_TK, rules.capacity)

  def again(state):
    start_P, _, gradients = state
    window_TP = _window(demand, start_P, rules.capacity)
    pull = jax.vjp(
      lambda *operands: _round(*operands, experts_TK, demand, window_TP, rules), *operands
    )[1]
    return *rules.following(demand, start_P, window_TP), jax.tree.map(
      jnp.add, gradients, pull(d_y_TD)
    )

  state = *rules.following(demand, start_P, first_TP), pull(d_y_TD)
  return *_further_rounds(again, state)[2], None


_all_rounds.defvjp(_forward, _backward)


def _further_rounds(again, state):
  """Rounds while a device has tokens left, which `state[1]` says. By this name the planner knows the loop."""
  with further_rounds():
    return lax.while_loop(lambda state: state[1], again, state)


def _telemetry(demand, first_TP, rounds, capacity):
  """Exchange. first_TP: the first round's window."""
  devices = first_TP.shape[1]
  counted = first_TP, jnp.where(first_TP, demand.assignments_TP, 0), demand.assignments_TP
  received = lax.psum_scatter(
    jnp.stack([x_TP.sum(axis=0, dtype=jnp.int32) for x_TP in counted], axis=1), _AXIS
  )
  tokens, assignments, load = received.astype(jnp.float32)
  share = jnp.maximum(
    tokens / (devices * capacity.tokens), assignments / (devices * capacity.assignments)
  )
  largest_share, largest_load = lax.pmax((share, load), mesh.BATCH_AXES)
  mean = lax.pmean(load, mesh.BATCH_AXES)
  return Exchange(rounds, largest_share, largest_load / jnp.where(mean > 0, mean, 1))


def _round(x_TD, gates_TK, weights, experts_TK, demand, window_TP, rules):
  """float32: what the experts make of the tokens of one round, zero for others. Differentiable in the first three."""
  transport, capacity, run = rules
  moves, sent_P = _slots(demand, window_TP, capacity, packed=transport != 'all_gather')
  devices, here = sent_P.shape[0], weights.gate_EDF.shape[0]
  # What travels with a token: its gates, and which experts of the receiver it is for (`here`: none).
  device_S = jnp.repeat(jnp.arange(devices, dtype=jnp.int32), capacity.tokens)
  experts_SK = _take(experts_TK, moves.source_S) - device_S[:, None] * here
  wanted_SK = (moves.source_S < x_TD.shape[0])[:, None] & (experts_SK >= 0) & (experts_SK < here)
  experts_SK = _to_all(jnp.where(wanted_SK, experts_SK, here))
  gates_SK = _to_all(_spread(gates_TK, moves))
  if transport == 'all_gather':
    x_SD = lax.all_gather(x_TD, _AXIS, tiled=True)
  elif transport == 'padded':
    x_SD = _to_all(_spread(x_TD, moves))
  else:
    received_P = _to_all(sent_P)
    x_SD = _ragged(_spread(x_TD, moves), sent_P, received_P)

  y_SD = _own_experts(x_SD, gates_SK, experts_SK, weights, devices * capacity.assignments, run)

  if transport == 'all_gather':
    return lax.psum_scatter(y_SD.astype(jnp.float32), _AXIS, tiled=True)
  return _collect(
    _to_all(y_SD) if transport == 'padded' else _ragged(y_SD, received_P, sent_P), moves
  )


def _slots(demand, window_TP, capacity, packed):
  """Where every token of the window lies among the slots to send, and how many there are for each device.

  packed: a device's slots follow one another; otherwise token t has the t-th, as if all were sent.
  """
  tokens, devices = window_TP.shape
  within_TP = (
    jnp.cumsum(window_TP, axis=0, dtype=jnp.int32) - window_TP
    if packed
    else jnp.arange(tokens)[:, None]
  )
  slots = devices * capacity.tokens
  slot_TP = jnp.where(
    window_TP, within_TP + jnp.arange(devices, dtype=jnp.int32)[None] * capacity.tokens, slots
  )
  source_S = jnp.full(slots, tokens, jnp.int32)
  source_S = source_S.at[slot_TP].set(jnp.arange(tokens, dtype=jnp.int32)[:, None], mode='drop')
  # A token crosses once to a device: only the first of its choices there has the slot.
  device_TK = demand.device_TK
  k = jnp.arange(device_TK.shape[1])
  again_TK = (
    (device_TK[:, :, None] == device_TK[:, None]) & (k[None, None] < k[None, :, None])
  ).any(axis=2)
  # Nobody's choices lie past the last column. By default JAX fills in the least integer, which `_take` takes for a row.
  slot_TK = jnp.take_along_axis(slot_TP, device_TK, axis=1, mode='fill', fill_value=slots)
  slot_TK = jnp.where(again_TK, slots, slot_TK)
  return _Moves(source_S, slot_TK), window_TP.sum(axis=0, dtype=jnp.int32)


def _own_experts(x_SD, gates_SK, experts_SK, weights, room, run):
  """y_SD: Σ over a row's assignments here of gate · FFN(row). `room` (A) holds all of them."""
  here = weights.gate_EDF.shape[0]
  row_SK, sizes_G, offsets_G = sort_assignments(experts_SK, here)
  row_SK = jnp.where(experts_SK < here, row_SK, room)
  choices = row_SK.shape[1]
  flat = jnp.arange(row_SK.size, dtype=jnp.int32)
  flat_A = jnp.full(room, row_SK.size, jnp.int32).at[row_SK.reshape(-1)].set(flat, mode='drop')
  assignments = _Moves(flat_A // choices, row_SK)
  gates_A1 = _spread(gates_SK.reshape(-1, 1), _Moves(flat_A, row_SK.reshape(-1, 1)))
  # Already sorted, one expert a row; rows past the last group are nobody's, and nobody reads what becomes of them.
  row_A = jnp.arange(room, dtype=jnp.int32)
  expert_A = jnp.searchsorted(
    offsets_G + sizes_G, row_A, side='right', method='compare_all'
  ).astype(jnp.int32)
  plan = DispatchPlan(
    jnp.minimum(expert_A, here - 1)[:, None], row_A[:, None], row_A, sizes_G, offsets_G
  )
  return _collect(run(_spread(x_SD, assignments), gates_A1, plan, weights), assignments).astype(
    x_SD.dtype
  )


def _to_all(rows_S):
  """The i-th of P equal parts goes to device i; parts arrive in the order of the devices."""
  return lax.all_to_all(rows_S, _AXIS, split_axis=0, concat_axis=0, tiled=True)


@jax.custom_vjp
def _ragged(rows_SD, sent_P, received_P):
  """As `_to_all`, but of every part only the first sent_P rows travel; the others arrive as zeros."""
  slots = rows_SD.shape[0] // sent_P.shape[0]
  first_P = jnp.arange(sent_P.shape[0], dtype=jnp.int32) * slots
  mine_P = jnp.full_like(first_P, lax.axis_index(_AXIS) * slots)
  return lax.ragged_all_to_all(
    rows_SD, jnp.zeros_like(rows_SD), first_P, sent_P, mine_P, received_P, axis_name=_AXIS
  )


_ragged.defvjp(
  lambda rows_SD, sent_P, received_P: (_ragged(rows_SD, sent_P, received_P), (sent_P, received_P)),
  lambda counts, d_rows_SD: (_ragged(d_rows_SD, counts[1], counts[0]), None, None),
)
