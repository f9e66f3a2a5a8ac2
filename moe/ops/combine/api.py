"""combine: each token's rows, weighted by its gates and summed."""

import jax

from moe.ops.combine import reference, xla
from moe.ops.dispatch_plan import DispatchPlan
from moe.ops.implementation import run


def _pallas_tpu(*arguments):
  from moe.ops.combine import pallas_tpu

  return pallas_tpu.combine(*arguments)


def _pallas_gpu(*arguments):
  from moe.ops.combine import pallas_gpu

  return pallas_gpu.combine(*arguments)


# Pallas is imported where its kernels run.
IMPLEMENTATIONS = {
  'reference': reference.combine,
  'xla': xla.combine,
  'pallas_tpu': _pallas_tpu,
  'pallas_gpu': _pallas_gpu,
}


def combine(
  rows_RD: jax.Array, gates_TK: jax.Array, plan: DispatchPlan, *, implementation: str = 'auto'
) -> jax.Array:
  """tokens_TD float32 with tokens[t] = Σ_k gates[t, k] · rows[plan.row_TK[t, k]].
  Differentiable in rows and gates.
  """
  return run('combine', IMPLEMENTATIONS, implementation, rows_RD, gates_TK, plan)
