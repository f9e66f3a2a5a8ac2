"""Sigmoid affinities (DeepSeek-V3, arXiv 2412.19437, Eq. 15)."""

import jax

from moe.routers.scored import ScoredRouter


class SigmoidRouter(ScoredRouter):
  """Affinities are σ(u · e), each expert's by itself."""

  def scores(self, logits_BLE: jax.Array) -> tuple[jax.Array, jax.Array]:
    affinities_BLE = jax.nn.sigmoid(logits_BLE)
    return affinities_BLE, affinities_BLE / affinities_BLE.sum(axis=-1, keepdims=True)
