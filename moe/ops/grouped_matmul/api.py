"""grouped_matmul: rows sorted by group, each times its group's matrix."""

import jax

from moe.ops.implementation import module


def grouped_matmul(
  rows_RD: jax.Array,
  weights_EDF: jax.Array,
  group_sizes_E: jax.Array,
  *,
  implementation: str = 'auto',
) -> jax.Array:
  """rows_RF float32: rows of group e times weights_EDF[e]; operands share one type, bfloat16 or float32.

  group_sizes_E (int32) sum to R; groups may be empty. Differentiable in rows and weights.
  """
  return module('grouped_matmul', implementation).grouped_matmul(
    rows_RD, weights_EDF, group_sizes_E
  )
