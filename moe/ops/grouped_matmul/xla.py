"""grouped_matmul through `lax.ragged_dot`: tiled on TPU;
on CPU and GPU XLA expands it to O(E) FLOPs.

The routed FFN therefore does not come here on CPU (see routed_ffn/tiled.py).
"""

import jax
import jax.numpy as jnp
from jax import lax

from moe.ops.quantized import Matrix, as_numbers


def grouped_matmul(rows_RD: jax.Array, weights_EDF: Matrix, group_sizes_E: jax.Array) -> jax.Array:
  weights_EDF = as_numbers(weights_EDF, rows_RD.dtype)
  precision = lax.Precision.HIGHEST if rows_RD.dtype == jnp.float32 else None
  return lax.ragged_dot(
    rows_RD, weights_EDF, group_sizes_E, precision=precision, preferred_element_type=jnp.float32
  )
