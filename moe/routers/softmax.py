"""Softmax top-k (Eq. 7–11); Switch's with k = 1."""

import jax

from moe.ops.router import Routing, route
from moe.routers.scored import ScoredRouter


class SoftmaxRouter(ScoredRouter):
  """Affinities are the softmax of u · e over all experts; the K largest are the gates (Eq. 7, 8,
  10). Without a bias or a device limit, as in the paper, one op does it: `moe.ops.router.route`.
  """

  def scores(self, logits_BLE: jax.Array) -> tuple[jax.Array, jax.Array]:
    affinities_BLE = jax.nn.softmax(logits_BLE)
    return affinities_BLE, affinities_BLE

  def choose_by_logits(
    self, logits_BLE: jax.Array, bias_E: jax.Array | None, is_token_BL: jax.Array, k: int
  ) -> Routing:
    if bias_E is None and not self.config.moe.device_limit:
      return route(logits_BLE, is_token_BL, k, implementation=self.config.ops.implementation)
    return super().choose_by_logits(logits_BLE, bias_E, is_token_BL, k)
