"""SwiGLU's elementwise part, silu(gate) · up, and its derivative; both in float32."""

import jax
import jax.numpy as jnp


def swiglu(gate: jax.Array, up: jax.Array) -> jax.Array:
  """silu(gate) · up, float32, same shape."""
  return jax.nn.silu(gate.astype(jnp.float32)) * up.astype(jnp.float32)


def swiglu_gradients(gate: jax.Array, up: jax.Array, cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Gradients of `swiglu` with respect to gate and up, float32."""
  gate, up = gate.astype(jnp.float32), up.astype(jnp.float32)
  sigmoid = jax.nn.sigmoid(gate)
  silu = gate * sigmoid
  return cotangent * up * (sigmoid + silu * (1 - sigmoid)), cotangent * silu
