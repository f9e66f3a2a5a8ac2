"""grouped_matmul as Triton kernels, forward and both gradients: see moe/ops/gpu/grouped.py.

Groups start at any row, so a tile starts there too and is masked at the group's end: at most one tile a group is
padding. The gradient of the rows reads the weights transposed; nothing is copied.
"""

import jax
import jax.numpy as jnp

from moe.ops.gpu.grouped import rows_times_matrices, rows_times_rows, write


@jax.custom_vjp
def grouped_matmul(
  rows_RD: jax.Array, weights_EDF: jax.Array, group_sizes_E: jax.Array
) -> jax.Array:
  return _product('grouped_matmul', rows_RD, weights_EDF, group_sizes_E, jnp.float32)


def _forward(rows_RD, weights_EDF, group_sizes_E):
  return grouped_matmul(rows_RD, weights_EDF, group_sizes_E), (rows_RD, weights_EDF, group_sizes_E)


def _backward(residuals, dy_RF):
  rows_RD, weights_EDF, group_sizes_E = residuals
  dy_RF = dy_RF.astype(rows_RD.dtype)
  dx_RD = _product(
    'grouped_matmul_d_rows', dy_RF, weights_EDF, group_sizes_E, rows_RD.dtype, transposed=True
  )
  if rows_RD.shape[0] == 0:
    return dx_RD, jnp.zeros_like(weights_EDF), None
  [dw_EDF] = rows_times_rows(
    'grouped_matmul_d_weights', rows_RD, [dy_RF], group_sizes_E, [weights_EDF.dtype]
  )
  return dx_RD, dw_EDF, None


grouped_matmul.defvjp(_forward, _backward)


def _product(name, rows, weights, group_sizes_E, dtype, *, transposed=False):
  shape = rows.shape[0], weights.shape[1 if transposed else 2]
  if rows.shape[0] == 0:
    return jnp.zeros(shape, dtype)
  output = jax.ShapeDtypeStruct(shape, dtype)
  return rows_times_matrices(
    name, [rows], [weights], group_sizes_E, [output], write, transposed=transposed
  )[0]
