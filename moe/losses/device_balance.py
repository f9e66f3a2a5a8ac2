"""Device-level balance loss, over moe.device_groups groups of consecutive experts."""

import jax

from moe.config import Config
from moe.losses.statistics import Statistics, Totals


def device_balance(statistics: Statistics, config: Config, totals: Totals) -> jax.Array:
  """Σ f' P' over groups and layers (Eq. 15, without α2)."""
  del totals
  groups = config.moe.device_groups
  in_groups = lambda x: x.reshape(*x.shape[:-1], groups, x.shape[-1] // groups)
  loads = in_groups(statistics.loads).mean(axis=-1)  # Eq. 16
  probabilities = in_groups(statistics.probabilities).sum(axis=-1)  # Eq. 17
  return statistics.share * (loads * probabilities).sum()
