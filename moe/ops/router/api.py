"""route: softmax, top-k and the statistics of the balance losses."""

import jax

from moe.ops.implementation import module
from moe.ops.router.types import Routing


def route(
  logits_BLE: jax.Array,
  is_token_BL: jax.Array,
  experts_per_token: int,
  *,
  implementation: str = 'auto',
) -> Routing:
  """s = softmax(logits); the K largest are the gates, not renormalised over the chosen (Eq. 7, 8, 10).

  Args:
    logits_BLE: float32.
    is_token_BL: bool; False for padding, which is routed but not counted in the sums.
    experts_per_token: K, at most E.

  Differentiable in the logits, through the gates and through every float sum.
  """
  return module('router', implementation).route(logits_BLE, is_token_BL, experts_per_token)
