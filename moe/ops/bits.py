"""bfloat16 arrays as the integers they are stored as, for moves that XLA:CPU would make in float32."""

import jax
import jax.numpy as jnp
from jax import lax


def as_bits(values: jax.Array) -> jax.Array:
  """uint16 of bfloat16 values; any other array as it is."""
  return lax.bitcast_convert_type(values, jnp.uint16) if values.dtype == jnp.bfloat16 else values


def as_floats(stored: jax.Array, dtype: jnp.dtype) -> jax.Array:
  """What `as_bits` was given, of type `dtype`."""
  return lax.bitcast_convert_type(stored, dtype) if stored.dtype == jnp.uint16 else stored
