"""Expert-level balance loss."""

import jax

from moe.config import Config
from moe.losses.statistics import Statistics, Totals


def expert_balance(statistics: Statistics, config: Config, totals: Totals) -> jax.Array:
  """Σ f P over experts and layers (Eq. 12, without α1):
  1 per layer where all experts are used equally.
  """
  del config, totals
  return statistics.share * (statistics.loads * statistics.probabilities).sum()
