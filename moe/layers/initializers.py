"""The one initialiser of every matrix."""

from flax import linen as nn

from moe.config import Config


def matrix(config: Config) -> nn.initializers.Initializer:
  """N(0, init_std²) (Section 4.1.3)."""
  return nn.initializers.normal(stddev=config.model.init_std)
