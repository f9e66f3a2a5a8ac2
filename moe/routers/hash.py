"""Hash Layers (Roller et al., 2021): a fixed, balanced hash of the token id."""

import jax
import jax.numpy as jnp
import numpy as np

from moe.ops.router import Routing, RoutingStats
from moe.ops.router.reference import count_choices
from moe.routers.base import Router


class HashRouter(Router):
  """A token's experts are a fixed function of its id; their affinities are one. No parameters."""

  def choose(
    self, u_BLD: jax.Array, token_ids_BL: jax.Array, is_token_BL: jax.Array, k: int
  ) -> Routing:
    """As `Router.choose`. The statistics count an affinity of 1/k for each chosen expert."""
    del u_BLD
    moe = self.config.moe
    table_VK = hash_table(self.config.model.vocab_size, moe.num_experts, k, moe.hash_seed)
    experts_BLK = jnp.asarray(table_VK)[token_ids_BL]
    counts_BE = count_choices(experts_BLK, is_token_BL, moe.num_experts)
    nothing_B = jnp.zeros(token_ids_BL.shape[0], jnp.float32)
    stats = RoutingStats(
      counts_BE=counts_BE,
      probability_sums_BE=counts_BE / k,
      entropy_sums_B=nothing_B + jnp.log(k) * is_token_BL.sum(axis=1),
      z_sums_B=nothing_B,
    )
    return Routing(jnp.ones(experts_BLK.shape, jnp.float32), experts_BLK, stats)


def hash_table(vocab_size: int, num_experts: int, experts_per_token: int, seed: int) -> np.ndarray:
  """table_VK int32: the K distinct experts of every token id, the same on every machine.

  Every E consecutive ids are dealt to the E experts by a random permutation, so all experts own
  equally many ids (±1). Their ids are about equally common, too, since a BPE vocabulary lists its
  pieces in merge order, roughly by frequency.
  Hash Layers (Roller et al., 2021) balance by the corpus's own token counts;
  this needs none, and the load is logged.
  """
  # PCG64 by name: its stream is fixed across NumPy versions.
  generator = np.random.Generator(np.random.PCG64(seed))
  blocks = -(-vocab_size // num_experts)
  order_VE = np.stack([_permutation(generator, num_experts) for _ in range(blocks)])
  first_V = order_VE.reshape(-1)[:vocab_size]
  # An id's further choices are the next experts, modulo E:
  # distinct, and each as balanced as the first.
  return ((first_V[:, None] + np.arange(experts_per_token)) % num_experts).astype(np.int32)


def _permutation(generator, n):
  return np.argsort(generator.random(n), kind='stable')
