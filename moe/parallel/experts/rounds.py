"""Which tokens go in which round, and all rounds of the exchange, in forward and in backward."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from moe.ops.routed_ffn import ExpertWeights
from moe.parallel import mesh
from moe.parallel.experts.capacity import Capacity
from moe.parallel.experts.exchange import AXIS, Rules, exchanged
from moe.parallel.experts.telemetry import Exchange, telemetry
from moe.parallel.scopes import further_rounds


class Demand(NamedTuple):
  """What a device's tokens ask of every device along the axis."""

  device_TK: jax.Array  # int32: the device of each choice; P where there is none
  assignments_TP: jax.Array  # int32: how many of a token's choices are on the device
  position_TP: jax.Array  # int32: tokens before this one that need the device, too
  total_P: jax.Array  # int32: tokens that need the device

  @classmethod
  def of(cls, experts_TK: jax.Array, devices: int, here: int) -> 'Demand':
    """The demand of choices; `devices` · `here` is no choice. here: G, experts on a device."""
    device_TK = experts_TK // here
    assignments_TP = (device_TK[:, :, None] == jnp.arange(devices)[None, None]).sum(
      axis=1, dtype=jnp.int32
    )
    needs_TP = (assignments_TP > 0).astype(jnp.int32)
    return cls(
      device_TK, assignments_TP, jnp.cumsum(needs_TP, axis=0) - needs_TP, needs_TP.sum(axis=0)
    )


def window(demand: Demand, start_P: jax.Array, capacity: Capacity) -> jax.Array:
  """window_TP: which tokens go to which device in the round that begins with each device's
  start_P-th token: as many as fit.
  """
  needs_TP = demand.assignments_TP > 0
  waiting_TP = needs_TP & (demand.position_TP >= start_P[None])
  assigned_TP = jnp.cumsum(jnp.where(waiting_TP, demand.assignments_TP, 0), axis=0)
  fits_TP = (demand.position_TP - start_P[None] < capacity.tokens) & (
    assigned_TP <= capacity.assignments
  )
  return waiting_TP & fits_TP


def _next_round(demand, start_P, window_TP):
  """(start_P of the round after the window's, whether any device still needs that round)."""
  start_P = start_P + window_TP.sum(axis=0, dtype=jnp.int32)
  return start_P, lax.pmax((start_P < demand.total_P).any(), mesh.BATCH_AXES)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def all_rounds(
  x_TD: jax.Array,
  gates_TK: jax.Array,
  weights: ExpertWeights,
  experts_TK: jax.Array,
  rules: Rules,
) -> tuple[jax.Array, Exchange]:
  """(float32 Σ_k gate · FFN(x), telemetry). Runs rounds until nothing is left. Inside `per_shard`.

  Args:
    weights: of this device's G experts.
    experts_TK: int32 in [0, P · G); P · G, past them all, is no choice.
  """
  return _forward(x_TD, gates_TK, weights, experts_TK, rules)[0]


def _first_round(weights, experts_TK, capacity):
  """(demand, start_P, window_TP)"""
  demand = Demand.of(experts_TK, lax.axis_size(AXIS), weights.gate_EDF.shape[0])
  start_P = jnp.zeros_like(demand.total_P)
  return demand, start_P, window(demand, start_P, capacity)


def _forward(x_TD, gates_TK, weights, experts_TK, rules):
  demand, start_P, first_TP = _first_round(weights, experts_TK, rules.capacity)
  one_round = lambda window_TP, *operands: exchanged(
    *operands, experts_TK, demand.device_TK, window_TP, rules
  )
  y_TD, pull = jax.vjp(functools.partial(one_round, first_TP), x_TD, gates_TK, weights)

  def again(state):
    start_P, _, rounds, y_TD = state
    window_TP = window(demand, start_P, rules.capacity)
    y_TD += one_round(window_TP, x_TD, gates_TK, weights)
    return *_next_round(demand, start_P, window_TP), rounds + 1, y_TD

  state = *_next_round(demand, start_P, first_TP), jnp.int32(1), y_TD
  _, _, rounds, y_TD = _further_rounds(again, state)
  exchange = telemetry(demand.assignments_TP, first_TP, rounds, rules.capacity)
  return (y_TD, exchange), (pull, x_TD, gates_TK, weights, experts_TK)


def _backward(rules, residuals, cotangents):
  pull, *operands, experts_TK = residuals
  d_y_TD = cotangents[0]
  demand, start_P, first_TP = _first_round(operands[-1], experts_TK, rules.capacity)

  def again(state):
    start_P, _, gradients = state
    window_TP = window(demand, start_P, rules.capacity)
    pull = jax.vjp(
      lambda *operands: exchanged(*operands, experts_TK, demand.device_TK, window_TP, rules),
      *operands,
    )[1]
    return *_next_round(demand, start_P, window_TP), jax.tree.map(jnp.add, gradients, pull(d_y_TD))

  state = *_next_round(demand, start_P, first_TP), pull(d_y_TD)
  return *_further_rounds(again, state)[2], None


all_rounds.defvjp(_forward, _backward)


def _further_rounds(again, state):
  """Runs rounds while any device has tokens left, as `state[1]` says.

  The planner recognises the loop by its scope's name.
  """
  with further_rounds():
    return lax.while_loop(lambda state: state[1], again, state)
