"""One round of the exchange: tokens to their experts' devices, through the experts, and back."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from moe.errors import UserError
from moe.ops.implementation import platform
from moe.ops.moves import Moves, collect, spread, take
from moe.ops.routed_ffn import ExpertWeights, routed_ffn_of_some
from moe.parallel.compiler import has_ragged_exchange
from moe.parallel.experts.capacity import Capacity

AXIS = 'expert'


class Rules(NamedTuple):
  """What every round of a layer's exchange shares."""

  transport: str  # padded, ragged or all_gather
  capacity: Capacity
  run: Callable  # the routed FFN of an implementation


def transport_of(requested: str) -> str:
  """`mesh.transport` with 'auto' decided; UserError where the machine lacks it."""
  ragged = platform() != 'cpu' and has_ragged_exchange()
  if requested == 'auto':
    return 'ragged' if ragged else 'padded'
  if requested == 'ragged' and not ragged:
    raise UserError(
      'mesh.transport=ragged needs GPUs, or a TPU slice that has it '
      '(v5e: 16 chips at most; not CPUs): use auto, padded or all_gather'
    )
  return requested


def exchanged(
  x_TD: jax.Array,
  gates_TK: jax.Array,
  weights: ExpertWeights,
  experts_TK: jax.Array,
  device_TK: jax.Array,
  window_TP: jax.Array,
  rules: Rules,
) -> jax.Array:
  """float32: the experts' output for the tokens of one round, zeros for the others.

  Differentiable in the first three. Inside `per_shard`.

  Args:
    weights: of this device's G experts.
    experts_TK: int32 in [0, P · G]; P · G is no choice.
    device_TK: int32, the device of each choice; P where there is none.
    window_TP: bool, which tokens go to which device in this round.
  """
  transport, capacity, run = rules
  moves, sent_P = _slots(device_TK, window_TP, capacity, packed=transport != 'all_gather')
  devices, here = sent_P.shape[0], weights.gate_EDF.shape[0]
  # A token travels with its gates and the experts of the receiver that it is for; `here` is none.
  device_A = jnp.repeat(jnp.arange(devices, dtype=jnp.int32), capacity.tokens)
  experts_AK = take(experts_TK, moves.source_A) - device_A[:, None] * here
  wanted_AK = (moves.source_A < x_TD.shape[0])[:, None] & (experts_AK >= 0) & (experts_AK < here)
  experts_AK = _to_all(jnp.where(wanted_AK, experts_AK, here))
  gates_AK = _to_all(spread(gates_TK, moves))
  if transport == 'all_gather':
    x_AD = lax.all_gather(x_TD, AXIS, tiled=True)
  elif transport == 'padded':
    x_AD = _to_all(spread(x_TD, moves))
  else:
    received_P = _to_all(sent_P)
    x_AD = _ragged(spread(x_TD, moves), sent_P, received_P)

  room = devices * capacity.assignments
  y_AD = routed_ffn_of_some(x_AD, gates_AK, experts_AK, weights, room, run)

  if transport == 'all_gather':
    return lax.psum_scatter(y_AD.astype(jnp.float32), AXIS, tiled=True)
  return collect(
    _to_all(y_AD) if transport == 'padded' else _ragged(y_AD, received_P, sent_P), moves
  )


def _slots(device_TK, window_TP, capacity, packed):
  """(Moves of the window's tokens to the slots to send, sent_P: how many go to each device).

  packed: the tokens for a device fill its first slots; otherwise token t has the t-th slot, as if
  all were sent.
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
  source_A = jnp.full(slots, tokens, jnp.int32)
  source_A = source_A.at[slot_TP].set(jnp.arange(tokens, dtype=jnp.int32)[:, None], mode='drop')
  # A token crosses to a device only once: the first of its choices there has the slot.
  k = jnp.arange(device_TK.shape[1])
  again_TK = (
    (device_TK[:, :, None] == device_TK[:, None]) & (k[None, None] < k[None, :, None])
  ).any(axis=2)
  # Padding's choices lie past the last column. By default JAX fills in the least integer there,
  # which `take` would read as a row's index.
  slot_TK = jnp.take_along_axis(slot_TP, device_TK, axis=1, mode='fill', fill_value=slots)
  slot_TK = jnp.where(again_TK, slots, slot_TK)
  return Moves(source_A, slot_TK), window_TP.sum(axis=0, dtype=jnp.int32)


def _to_all(rows_A):
  """Sends the i-th of P equal parts to device i; parts arrive in the order of the devices."""
  return lax.all_to_all(rows_A, AXIS, split_axis=0, concat_axis=0, tiled=True)


@jax.custom_vjp
def _ragged(rows_AD, sent_P, received_P):
  """As `_to_all`, but only the first sent_P rows of a part travel; the others arrive as zeros."""
  slots = rows_AD.shape[0] // sent_P.shape[0]
  first_P = jnp.arange(sent_P.shape[0], dtype=jnp.int32) * slots
  mine_P = jnp.full_like(first_P, lax.axis_index(AXIS) * slots)
  return lax.ragged_all_to_all(
    rows_AD, jnp.zeros_like(rows_AD), first_P, sent_P, mine_P, received_P, axis_name=AXIS
  )


_ragged.defvjp(
  lambda rows_AD, sent_P, received_P: (_ragged(rows_AD, sent_P, received_P), (sent_P, received_P)),
  lambda counts, d_rows_AD: (_ragged(d_rows_AD, counts[1], counts[0]), None, None),
)
