"""route: softmax, top-k and the statistics of the balance losses."""

import jax

from moe.ops.implementation import run
from moe.ops.router import reference, xla
from moe.ops.router.types import Routing


def _pallas_tpu(*arguments):
  from moe.ops.router import pallas_tpu

  return pallas_tpu.route(*arguments)


def _pallas_gpu(*arguments):
  from moe.ops.router import pallas_gpu

  return pallas_gpu.route(*arguments)


# Pallas is imported where its kernels run.
IMPLEMENTATIONS = {
  'reference': reference.route,
  'xla': xla.route,
  'pallas_tpu': _pallas_tpu,
  'pallas_gpu': _pallas_gpu,
}


def route(
  logits_BLE: jax.Array,
  is_token_BL: jax.Array,
  experts_per_token: int,
  *,
  implementation: str = 'auto',
) -> Routing:
  """s = softmax(logits); the K largest are the gates,
  not renormalised over the chosen (Eq. 7, 8, 10).

  Args:
    logits_BLE: float32.
    is_token_BL: bool; False for padding, which is routed but not counted in the sums.
    experts_per_token: K, at most E.

  Differentiable in the logits, through the gates and through every float sum.
  """
  return run('router', IMPLEMENTATIONS, implementation, logits_BLE, is_token_BL, experts_per_token)
