"""Router z-loss (ST-MoE, arXiv 2202.08906, Eq. 5): keeps the router's logits small."""

import jax

from moe.config import Config
from moe.losses.statistics import Statistics, Totals


def router_z(statistics: Statistics, config: Config, totals: Totals) -> jax.Array:
  """Mean over tokens of logsumexp(router logits)², summed over layers."""
  del config
  return 1 / totals.tokens * statistics.sums.z_sums_B.sum()
