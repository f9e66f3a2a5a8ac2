"""Rows of arrays moved by XLA: gathers, sums of gathers, and bfloat16 moved as bits, which the ops
share.

T tokens, K experts a token, D width, R = T·K rows.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from moe.ops.dispatch_plan import DispatchPlan


def as_bits(values: jax.Array) -> jax.Array:
  """uint16 of bfloat16 values, for moves that XLA:CPU would make in float32;
  any other array as it is.
  """
  return lax.bitcast_convert_type(values, jnp.uint16) if values.dtype == jnp.bfloat16 else values


def as_floats(stored: jax.Array, dtype: jnp.dtype) -> jax.Array:
  """The array of type `dtype` that `as_bits` was given."""
  return lax.bitcast_convert_type(stored, dtype) if stored.dtype == jnp.uint16 else stored


def take_rows(rows_RD: jax.Array, index: jax.Array) -> jax.Array:
  """rows_RD[index], index within bounds. Moves bfloat16 as bits:
  XLA:CPU would first copy the whole array in float32.
  """
  return as_floats(as_bits(rows_RD).at[index].get(mode='promise_in_bounds'), rows_RD.dtype)


def sum_rows(rows_RD: jax.Array, row_TK: jax.Array) -> jax.Array:
  """tokens_TD float32: the sum over k of rows[row_TK[:, k]],
  as K gathers rather than one of K times the size.
  """
  gathered = (take_rows(rows_RD, row_TK[:, k]) for k in range(row_TK.shape[1]))
  return functools.reduce(jnp.add, (rows_TD.astype(jnp.float32) for rows_TD in gathered))


def gates_by_row(gates_TK: jax.Array, plan: DispatchPlan) -> jax.Array:
  """gates_R: the gate of every row. A permutation, hence a scatter without collisions."""
  flat = jnp.zeros(gates_TK.size, gates_TK.dtype).at[plan.row_TK.reshape(-1)]
  return flat.set(gates_TK.reshape(-1), unique_indices=True, mode='promise_in_bounds')
