"""Routers: softmax top-k with raw gates (Eq. 7–11; Switch's with k = 1), and a fixed balanced hash of the token id."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from moe.config import ModelConfig, MoEConfig
from moe.layers import initializers


class RoutingStats(NamedTuple):
  """Sums over the real tokens of each sequence, from which every balance loss and metric follows.

  Sums, not means, so that parts of a batch add up exactly.
  """

  counts_BE: jax.Array  # int32: tokens that chose the expert
  probability_sums_BE: jax.Array  # float32: Σ_t s_it
  entropy_sums_B: jax.Array  # float32: Σ_t −Σ_i s_it log s_it, in nats
  z_sums_B: jax.Array  # float32: Σ_t logsumexp(router logits)²


class SoftmaxRouter(nn.Module):
  """s = softmax(u · e); the K largest are the gates, not renormalised over the chosen (Eq. 7, 8, 10)."""

  config: ModelConfig
  moe: MoEConfig

  @nn.compact
  def __call__(
    self, u_BLD: jax.Array, token_ids_BL: jax.Array, is_token_BL: jax.Array
  ) -> tuple[jax.Array, jax.Array, RoutingStats]:
    """gates_BLK float32, experts_BLK int32 (largest gate first, ties to the lower index), statistics."""
    del token_ids_BL
    experts_DE = self.param('experts', initializers.matrix(self.config), (self.config.d_model, self.moe.num_experts))
    # float32 throughout: rounding a logit to bfloat16 moves tokens to other experts.
    logits_BLE = jnp.matmul(u_BLD.astype(jnp.float32), experts_DE, precision=lax.Precision.HIGHEST)
    log_affinities_BLE = jax.nn.log_softmax(logits_BLE)
    affinities_BLE = jnp.exp(log_affinities_BLE)
    gates_BLK, experts_BLK = lax.top_k(affinities_BLE, self.moe.experts_per_token)
    stats = RoutingStats(
      counts_BE=_counts(experts_BLK, is_token_BL, self.moe.num_experts),
      probability_sums_BE=jnp.where(is_token_BL[:, :, None], affinities_BLE, 0).sum(axis=1),
      entropy_sums_B=-jnp.where(is_token_BL, (affinities_BLE * log_affinities_BLE).sum(axis=-1), 0).sum(axis=1),
      z_sums_B=jnp.where(is_token_BL, jnp.square(jax.nn.logsumexp(logits_BLE, axis=-1)), 0).sum(axis=1),
    )
    return gates_BLK, experts_BLK, stats


class HashRouter(nn.Module):
  """Hash Layer: the experts of a token are a fixed function of its id, its gates are one. No parameters."""

  config: ModelConfig
  moe: MoEConfig

  @nn.compact
  def __call__(
    self, u_BLD: jax.Array, token_ids_BL: jax.Array, is_token_BL: jax.Array
  ) -> tuple[jax.Array, jax.Array, RoutingStats]:
    """As `SoftmaxRouter`; the affinities of its statistics are 1/K for the chosen experts."""
    del u_BLD
    table_VK = hash_table(self.config.vocab_size, self.moe.num_experts, self.moe.experts_per_token, self.moe.hash_seed)
    experts_BLK = jnp.asarray(table_VK)[token_ids_BL]
    counts_BE = _counts(experts_BLK, is_token_BL, self.moe.num_experts)
    nothing_B = jnp.zeros(token_ids_BL.shape[0], jnp.float32)
    stats = RoutingStats(
      counts_BE=counts_BE,
      probability_sums_BE=counts_BE / self.moe.experts_per_token,
      entropy_sums_B=nothing_B + jnp.log(self.moe.experts_per_token) * is_token_BL.sum(axis=1),
      z_sums_B=nothing_B,
    )
    return jnp.ones(experts_BLK.shape, jnp.float32), experts_BLK, stats


def hash_table(vocab_size: int, num_experts: int, experts_per_token: int, seed: int) -> np.ndarray:
  """table_VK int32: the K distinct experts of every token id, the same on every machine.

  Every E consecutive ids are dealt to the E experts by a random permutation, so all experts own equally many ids (±1);
  and since a BPE vocabulary lists pieces in the order of merging, about that of frequency, equally common ones.
  Hash Layers (Roller et al., 2021) balance by the corpus's own token counts; this needs none, and the load is logged.
  """
  generator = np.random.Generator(np.random.PCG64(seed))  # PCG64 by name: its stream is fixed across NumPy versions
  blocks = -(-vocab_size // num_experts)
  order_VE = np.stack([_permutation(generator, num_experts) for _ in range(blocks)])
  first_V = order_VE.reshape(-1)[:vocab_size]
  # The further choices of an id are the next experts in a circle: distinct, and each as balanced as the first.
  return ((first_V[:, None] + np.arange(experts_per_token)) % num_experts).astype(np.int32)


def _permutation(generator, n):
  return np.argsort(generator.random(n), kind='stable')


def _counts(experts_BLK, is_token_BL, num_experts):
  """int32 counts_BE of the real tokens that chose each expert."""
  chosen_BLE = (experts_BLK[..., None] == jnp.arange(num_experts)[None, None, None]).any(axis=2)
  return (chosen_BLE & is_token_BL[..., None]).sum(axis=1, dtype=jnp.int32)
