"""grouped_matmul one group after another, each over all rows with the others masked:
O(E) in FLOPs.
"""

import jax
import jax.numpy as jnp
from jax import lax

from moe.ops.matmul import matmul
from moe.ops.quantized import Matrix, as_numbers


def grouped_matmul(rows_RD: jax.Array, weights_EDF: Matrix, group_sizes_E: jax.Array) -> jax.Array:
  weights_EDF = as_numbers(weights_EDF, rows_RD.dtype)
  ends_E = jnp.cumsum(group_sizes_E)
  row_R = jnp.arange(rows_RD.shape[0])

  # Backward masks the rows again: keeping the masked ones would take E times the memory.
  @jax.checkpoint
  def add_group(total_RF, group):
    weights_DF, size, end = group
    mine_R = (row_R >= end - size) & (row_R < end)
    return total_RF + matmul(jnp.where(mine_R[:, None], rows_RD, 0), weights_DF), None

  total_RF = jnp.zeros((rows_RD.shape[0], weights_EDF.shape[2]), jnp.float32)
  return lax.scan(add_group, total_RF, (weights_EDF, group_sizes_E, ends_E))[0]
