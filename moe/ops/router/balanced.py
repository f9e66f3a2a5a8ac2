"""Forced balanced routing, for measuring machines:
what a step costs when no expert waits for another.
"""

import jax
import jax.numpy as jnp

from moe.ops.router.reference import count_choices
from moe.ops.router.types import Routing


def force_balance(routing: Routing, is_token_BL: jax.Array, num_experts: int) -> Routing:
  """`routing` with its choices replaced: the j-th real token gets experts
  jK … jK + K − 1, modulo E.

  So the loads of two experts differ by one token at most. Gates, the float sums and their gradients
  stay the router's own; counts are those of the new choices.

  Args:
    is_token_BL: bool; False for padding, which takes the experts of the token
      after it and is not counted.
    num_experts: E.
  """
  k, real_BL = routing.experts_BLK.shape[2], is_token_BL.astype(jnp.int32)
  tokens_B = real_BL.sum(axis=1)
  before_BL = jnp.cumsum(real_BL, axis=1) - real_BL + (jnp.cumsum(tokens_B) - tokens_B)[:, None]
  first_BL = before_BL % num_experts * k
  experts_BLK = (first_BL[:, :, None] + jnp.arange(k, dtype=jnp.int32)[None, None]) % num_experts
  counts_BE = count_choices(experts_BLK, is_token_BL, num_experts)
  return Routing(routing.gates_BLK, experts_BLK, routing.stats._replace(counts_BE=counts_BE))
