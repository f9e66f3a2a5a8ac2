"""The router as the paper writes it, with XLA's own softmax and top-k."""

import jax
import jax.numpy as jnp
from jax import lax

from moe.ops.router.types import Routing, RoutingStats


def route(logits_BLE: jax.Array, is_token_BL: jax.Array, experts_per_token: int) -> Routing:
  log_affinities_BLE = jax.nn.log_softmax(logits_BLE)
  affinities_BLE = jnp.exp(log_affinities_BLE)  # Eq. 8, 11
  gates_BLK, experts_BLK = lax.top_k(affinities_BLE, experts_per_token)  # Eq. 7, 10
  over_tokens = lambda x_BL: jnp.where(is_token_BL, x_BL, 0).sum(axis=1)
  stats = RoutingStats(
    counts_BE=count_choices(experts_BLK, is_token_BL, logits_BLE.shape[-1]),
    probability_sums_BE=jnp.where(is_token_BL[:, :, None], affinities_BLE, 0).sum(axis=1),
    entropy_sums_B=-over_tokens((affinities_BLE * log_affinities_BLE).sum(axis=-1)),
    z_sums_B=over_tokens(jnp.square(jax.nn.logsumexp(logits_BLE, axis=-1))),
  )
  return Routing(gates_BLK, experts_BLK, stats)


def count_choices(experts_BLK: jax.Array, is_token_BL: jax.Array, num_experts: int) -> jax.Array:
  """int32 counts_BE of the real tokens that chose each expert."""
  chosen_BLE = (experts_BLK[..., None] == jnp.arange(num_experts)[None, None, None]).any(axis=2)
  return (chosen_BLE & is_token_BL[..., None]).sum(axis=1, dtype=jnp.int32)
