"""grouped_matmul as Triton kernels, forward and both gradients: see moe/ops/gpu/grouped.py.

They serve routed_ffn/grouped.py where it is asked for pallas_gpu, benchmarks, launch.aot, and
int4 matrices (moe/ops/weights.py). The experts of a run with ops.implementation=pallas_gpu do not
use them: routed_ffn/pallas_gpu.py has fused products of its own.

Groups start at any row, so a tile starts there too and is masked at the group's end: at most one
tile per group is partly padding. The gradient of the rows reads the weights transposed; nothing is
copied.
"""

import jax
import jax.numpy as jnp

from moe.ops.gpu.grouped import rows_times_matrices, rows_times_rows, write
from moe.ops.kernels import Kernel
from moe.ops.quantized import Matrix

_PRODUCT = Kernel('grouped_matmul', products=1)
_D_ROWS = Kernel('grouped_matmul_d_rows', backward=True, products=1)
_D_WEIGHTS = Kernel('grouped_matmul_d_weights', backward=True, products=1)
KERNELS = (_PRODUCT, _D_ROWS, _D_WEIGHTS)


@jax.custom_vjp
def grouped_matmul(rows_RD: jax.Array, weights_EDF: Matrix, group_sizes_E: jax.Array) -> jax.Array:
  return _product(_PRODUCT.name, rows_RD, weights_EDF, group_sizes_E, jnp.float32)


def _forward(rows_RD, weights_EDF, group_sizes_E):
  return grouped_matmul(rows_RD, weights_EDF, group_sizes_E), (rows_RD, weights_EDF, group_sizes_E)


def _backward(residuals, dy_RF):
  rows_RD, weights_EDF, group_sizes_E = residuals
  dy_RF = dy_RF.astype(rows_RD.dtype)
  dx_RD = _product(_D_ROWS.name, dy_RF, weights_EDF, group_sizes_E, rows_RD.dtype, transposed=True)
  if rows_RD.shape[0] == 0:
    return dx_RD, jnp.zeros_like(weights_EDF), None
  [dw_EDF] = rows_times_rows(_D_WEIGHTS.name, rows_RD, [dy_RF], group_sizes_E, [weights_EDF.dtype])
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
