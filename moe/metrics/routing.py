"""A step's routing metrics, from what its MoE layers measured.
N MoE layers, B sequences, E routed experts.
"""

import jax
import jax.numpy as jnp

from moe.metrics import telemetry as telemetry_lib
from moe.metrics.telemetry import Reading, Telemetry
from moe.ops.router import RoutingStats


def routing_telemetry(stats: RoutingStats) -> Telemetry:
  """The readings of N routers, whose statistics have a leading axis N:
  sums over the real tokens of all sequences.
  """
  return {
    'expert_counts': Reading(stats.counts_BE.sum(axis=1), 'sum'),  # (N, E) int32
    'router_entropy': Reading(stats.entropy_sums_B.sum(axis=1), 'sum'),  # (N,) nats, over tokens
  }


def load_over_mean(counts_NE: jax.Array) -> jax.Array:
  """float32: every expert's assignments over its layer's mean; zeros for a layer without any."""
  counts_NE = counts_NE.astype(jnp.float32)
  return counts_NE / jnp.maximum(counts_NE.mean(axis=1, keepdims=True), 1e-30)


def metrics(telemetry: Telemetry, num_tokens: jax.Array) -> dict[str, jax.Array]:
  """The metrics of a batch with `num_tokens` real tokens: NAME_N for every reading,
  but for those of `routing_telemetry`

  max_vio_N: MaxVio = max load ÷ mean load − 1 (arXiv 2408.15664, Eq. 4): 0 is balance; at E/K − 1
    one expert takes every token.
  router_entropy_N: mean entropy of the affinities, nats.
  dead_experts_N: experts that got no token, int32.
  expert_load_NE: every expert's load over the mean load.
  expert_counts_NE: tokens that chose the expert, int32.
  """
  others = dict(telemetry)
  counts, entropy = others.pop('expert_counts', None), others.pop('router_entropy', None)
  if counts is None:
    return telemetry_lib.values(others)
  load_NE = load_over_mean(counts.value)
  return {
    'max_vio_N': load_NE.max(axis=1) - 1,
    'router_entropy_N': entropy.value / num_tokens,
    'dead_experts_N': (counts.value == 0).sum(axis=1),
    'expert_load_NE': load_NE,
    'expert_counts_NE': counts.value,
    **telemetry_lib.values(others),
  }
