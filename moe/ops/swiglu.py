"""SwiGLU's elementwise part, silu(gate) · up, and its derivative; both in float32."""

import jax
import jax.numpy as jnp


def swiglu(gate: jax.Array, up: jax.Array) -> jax.Array:
  """silu(gate) · up, float32, same shape."""
  return jax.nn.silu(gate.astype(jnp.float32)) * up.astype(jnp.float32)


@jax.custom_vjp
def activation(gate: jax.Array, up: jax.Array) -> jax.Array:
  """`swiglu` in the operands' type, for autodiff: backward keeps the
  operands and nothing in float32.
  """
  return swiglu(gate, up).astype(gate.dtype)


def swiglu_gradients(
  gate: jax.Array, up: jax.Array, cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Gradients of `swiglu` with respect to gate and up, float32."""
  gate, up = gate.astype(jnp.float32), up.astype(jnp.float32)
  sigmoid = jax.nn.sigmoid(gate)
  silu = gate * sigmoid
  return cotangent * up * (sigmoid + silu * (1 - sigmoid)), cotangent * silu


def _activation_backward(operands, cotangent):
  gate, up = operands
  return tuple(
    d.astype(gate.dtype) for d in swiglu_gradients(gate, up, cotangent.astype(jnp.float32))
  )


activation.defvjp(lambda gate, up: (activation(gate, up), (gate, up)), _activation_backward)
