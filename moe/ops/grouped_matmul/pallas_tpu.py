"""grouped_matmul as Mosaic kernels: a grid over aligned row tiles, so that no group is padded.

They serve routed_ffn/grouped.py where it is asked for pallas_tpu, benchmarks, launch.aot, and
int4 matrices (moe/ops/weights.py). The experts of a run with ops.implementation=pallas_tpu do not
use them: routed_ffn/pallas_tpu.py has fused products of its own.

Any number of rows, any D, F and E. Tiles: 128 to 512 rows (fewer only where there are fewer rows),
all of the contracted width, and all columns or as many of them as fit in VMEM.
"""

import jax
import jax.numpy as jnp

from moe.ops.kernels import Kernel
from moe.ops.quantized import Matrix
from moe.ops.tpu.products import grouped_outer, grouped_product
from moe.ops.tpu.visits import make_visits

_PRODUCT = Kernel('grouped_matmul', products=1)
_D_ROWS = Kernel('grouped_matmul_d_rows', backward=True, products=1)
_D_WEIGHTS = Kernel('grouped_matmul_d_weights', backward=True, products=1)
KERNELS = (_PRODUCT, _D_ROWS, _D_WEIGHTS)


@jax.custom_vjp
def grouped_matmul(rows_RD: jax.Array, weights_EDF: Matrix, group_sizes_E: jax.Array) -> jax.Array:
  if rows_RD.shape[0] == 0:
    return jnp.zeros((0, weights_EDF.shape[2]), jnp.float32)
  visits = make_visits(group_sizes_E, rows_RD.shape[0], weights_EDF, rows_RD.dtype)
  return grouped_product(_PRODUCT.name, [(rows_RD, weights_EDF)], visits, transposed=False)


def _forward(rows_RD, weights_EDF, group_sizes_E):
  return grouped_matmul(rows_RD, weights_EDF, group_sizes_E), (rows_RD, weights_EDF, group_sizes_E)


def _backward(residuals, d_rows_RF):
  rows_RD, weights_EDF, group_sizes_E = residuals
  if rows_RD.shape[0] == 0:
    return jnp.zeros_like(rows_RD), jnp.zeros_like(weights_EDF), None
  dy_RF = d_rows_RF.astype(rows_RD.dtype)
  num_rows, dtype = rows_RD.shape[0], rows_RD.dtype
  visits = make_visits(group_sizes_E, num_rows, weights_EDF, dtype, visit_empty=True)
  d_rows_RD = grouped_product(_D_ROWS.name, [(dy_RF, weights_EDF)], visits, transposed=True)
  d_weights_EDF = grouped_outer(_D_WEIGHTS.name, rows_RD, dy_RF, visits)
  return d_rows_RD.astype(rows_RD.dtype), d_weights_EDF.astype(weights_EDF.dtype), None


grouped_matmul.defvjp(_forward, _backward)
