"""Rows copied from sources to slots, and summed back: each is the other's gradient."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Moves(NamedTuple):
  """Rows copied from sources to slots: at most K slots a source, at most one source a slot."""

  source_A: jax.Array  # int32: each slot's source; the number of sources where it stays empty
  slot_TK: jax.Array  # int32: each source's slots; the number of slots where it has fewer than K


@jax.custom_vjp
def spread(rows_TD: jax.Array, moves: Moves) -> jax.Array:
  """slots_AD: the row of each slot's source, zeros in empty slots."""
  return take(rows_TD, moves.source_A)


@jax.custom_vjp
def collect(slots_AD: jax.Array, moves: Moves) -> jax.Array:
  """rows_TD, float32: the sum of each source's slots, as K gathers. The transpose of `spread`."""
  gathered = (
    take(slots_AD, moves.slot_TK[:, k]).astype(jnp.float32) for k in range(moves.slot_TK.shape[1])
  )
  return functools.reduce(jnp.add, gathered)


def _types(rows, moves):
  return moves, jnp.zeros(0, rows.dtype)  # zero-sized: the type of the gradient


spread.defvjp(
  lambda rows, moves: (spread(rows, moves), _types(rows, moves)),
  lambda kept, d: (collect(d, kept[0]).astype(kept[1].dtype), None),
)
collect.defvjp(
  lambda slots, moves: (collect(slots, moves), _types(slots, moves)),
  lambda kept, d: (spread(d.astype(kept[1].dtype), kept[0]), None),
)


def take(rows_RD: jax.Array, index: jax.Array) -> jax.Array:
  """rows_RD[index], zeros where index is R. These rows are replaced rather than multiplied by zero:
  an unused row may hold anything, even NaN.
  """
  n = rows_RD.shape[0]
  gathered = rows_RD.at[jnp.minimum(index, n - 1)].get(mode='promise_in_bounds')
  return jnp.where((index < n)[:, None], gathered, 0)
