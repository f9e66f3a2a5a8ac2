"""What a router returns."""

from typing import NamedTuple

import jax


class RoutingStats(NamedTuple):
  """Sums over the real tokens of each sequence, from which every balance loss and metric follows.

  Sums, not means, so that parts of a batch add up exactly.
  """

  counts_BE: jax.Array  # int32: tokens that chose the expert
  probability_sums_BE: jax.Array  # float32: Σ_t s_it
  entropy_sums_B: jax.Array  # float32: Σ_t −Σ_i s_it log s_it, in nats
  z_sums_B: jax.Array  # float32: Σ_t logsumexp(router logits)²
  # int32 histograms, where balancing asks for them: `moe.routers.balancing.excess`.
  excess_BEH: jax.Array | None = None


class Routing(NamedTuple):
  """The choice of every token, padding included, and the sums over real ones.

  A router returns gates in gates_BLK. `Router.choose` and the op `route` return the affinities that
  gates are made from, and may return more than K, best first.
  """

  gates_BLK: jax.Array  # float32
  experts_BLK: jax.Array  # int32; of equal affinities the lower index first
  stats: RoutingStats
