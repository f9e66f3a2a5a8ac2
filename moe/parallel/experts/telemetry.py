"""What a layer measures of its exchange."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from moe.parallel import mesh
from moe.parallel.experts.capacity import Capacity
from moe.parallel.experts.exchange import AXIS


class Exchange(NamedTuple):
  """Telemetry of one layer's exchange, over all devices and real tokens only."""

  # int32: how many rounds the exchange took; 1 unless routing is lopsided.
  rounds: jax.Array
  # float32: the fullest device's share of its room for tokens, or assignments, in the first round.
  buffer_share: jax.Array
  # float32: assignments of the busiest device over the mean; 0 where there are none.
  device_load: jax.Array


def telemetry(
  assignments_TP: jax.Array, first_TP: jax.Array, rounds: jax.Array, capacity: Capacity
) -> Exchange:
  """The telemetry of an exchange. Inside `per_shard`.

  Args:
    assignments_TP: int32, choices of this device's tokens on each device.
    first_TP: bool, the first round's window.
    rounds: int32, how many there were.
  """
  devices = first_TP.shape[1]
  counted = first_TP, jnp.where(first_TP, assignments_TP, 0), assignments_TP
  received = lax.psum_scatter(
    jnp.stack([x_TP.sum(axis=0, dtype=jnp.int32) for x_TP in counted], axis=1), AXIS
  )
  tokens, assignments, load = received.astype(jnp.float32)
  share = jnp.maximum(
    tokens / (devices * capacity.tokens), assignments / (devices * capacity.assignments)
  )
  largest_share, largest_load = lax.pmax((share, load), mesh.BATCH_AXES)
  mean = lax.pmean(load, mesh.BATCH_AXES)
  return Exchange(rounds, largest_share, largest_load / jnp.where(mean > 0, mean, 1))
