"""Rotary position embedding."""

import jax
import jax.numpy as jnp


def apply_rope(x_BLHC: jax.Array, positions_BL: jax.Array, base: float) -> jax.Array:
  """x with the pairs (c, c + C/2) of every head rotated by position · base^(−2c/C). Same type.

  Angles are float32, since in bfloat16 positions above 256 are no longer distinct.
  """
  half = x_BLHC.shape[-1] // 2
  frequencies_C = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
  angles_BL1C = positions_BL[:, :, None, None].astype(jnp.float32) * frequencies_C[None, None, None]
  cos, sin = jnp.cos(angles_BL1C), jnp.sin(angles_BL1C)
  first, second = jnp.split(x_BLHC.astype(jnp.float32), 2, axis=-1)
  turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
  return turned.astype(x_BLHC.dtype)
