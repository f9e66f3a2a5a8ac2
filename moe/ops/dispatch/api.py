"""dispatch: a copy of every token for each expert it chose, sorted by expert."""

import jax

from moe.ops.dispatch import reference, xla
from moe.ops.dispatch_plan import DispatchPlan
from moe.ops.implementation import run


def _pallas_tpu(*arguments):
  from moe.ops.dispatch import pallas_tpu

  return pallas_tpu.dispatch(*arguments)


def _pallas_gpu(*arguments):
  from moe.ops.dispatch import pallas_gpu

  return pallas_gpu.dispatch(*arguments)


# Pallas is imported where its kernels run.
IMPLEMENTATIONS = {
  'reference': reference.dispatch,
  'xla': xla.dispatch,
  'pallas_tpu': _pallas_tpu,
  'pallas_gpu': _pallas_gpu,
}


def dispatch(
  tokens_TD: jax.Array, plan: DispatchPlan, *, implementation: str = 'auto'
) -> jax.Array:
  """rows_RD with rows[r] = tokens[plan.token_R[r]], in the tokens' type.
  Differentiable in the tokens.
  """
  return run('dispatch', IMPLEMENTATIONS, implementation, tokens_TD, plan)
