"""What a training step tells about itself: routing telemetry on the device, and the rates that follow from time.

N MoE layers, B sequences, E routed experts.
"""

import jax
import jax.numpy as jnp

from moe.ops.router import RoutingStats


def sum_over_sequences(stats: RoutingStats) -> RoutingStats:
  """The statistics with their sequence axis summed out: (N, E) or (N,) each. Parts of a batch add up."""
  return jax.tree.map(lambda x: x.sum(axis=1), stats)


def load_over_mean(counts_NE: jax.Array) -> jax.Array:
  """float32: every expert's assignments over its layer's mean; zero where there are none at all."""
  counts_NE = counts_NE.astype(jnp.float32)
  return counts_NE / jnp.maximum(counts_NE.mean(axis=1, keepdims=True), 1e-30)


def routing_metrics(stats: RoutingStats, num_tokens: jax.Array) -> dict[str, jax.Array]:
  """Per-layer telemetry of a batch's real tokens, from statistics summed over its sequences.

  Returns:
    max_vio_N: the busiest expert's load over the mean load; 1 is perfect balance, E/K one expert taking every token.
    router_entropy_N: mean entropy of the affinities, nats.
    dead_experts_N: experts that got no token, int32.
    expert_load_NE: every expert's load over the mean load.
  """
  load_NE = load_over_mean(stats.counts_BE)
  return {
    'max_vio_N': load_NE.max(axis=1),
    'router_entropy_N': stats.entropy_sums_B / num_tokens,
    'dead_experts_N': (stats.counts_BE == 0).sum(axis=1),
    'expert_load_NE': load_NE,
  }
