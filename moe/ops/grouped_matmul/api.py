"""grouped_matmul: rows sorted by group, each times its group's matrix."""

import jax

from moe.ops.grouped_matmul import reference, xla
from moe.ops.implementation import run
from moe.ops.quantized import Matrix


def _pallas_tpu(*arguments):
  from moe.ops.grouped_matmul import pallas_tpu

  return pallas_tpu.grouped_matmul(*arguments)


def _pallas_gpu(*arguments):
  from moe.ops.grouped_matmul import pallas_gpu

  return pallas_gpu.grouped_matmul(*arguments)


# Pallas is imported where its kernels run.
IMPLEMENTATIONS = {
  'reference': reference.grouped_matmul,
  'xla': xla.grouped_matmul,
  'pallas_tpu': _pallas_tpu,
  'pallas_gpu': _pallas_gpu,
}


def grouped_matmul(
  rows_RD: jax.Array,
  weights_EDF: Matrix,
  group_sizes_E: jax.Array,
  *,
  implementation: str = 'auto',
) -> jax.Array:
  """rows_RF float32: rows of group e times weights_EDF[e].

  Operands share one type, bfloat16 or float32, or weights are quantized. group_sizes_E (int32) sum
  to R; groups may be empty. Differentiable in rows and weights unless weights are quantized.
  """
  return run('grouped_matmul', IMPLEMENTATIONS, implementation, rows_RD, weights_EDF, group_sizes_E)
