"""Routers that score every expert by u · e and choose the best. Subclasses turn logits into
scores; the bias and the device limit, which also affect the choice, are here.
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from moe.config import Config
from moe.metrics.telemetry import Reading, Telemetry
from moe.ops.router import Routing, RoutingStats
from moe.parallel import sharding, zero
from moe.routers import balancing
from moe.routers.base import Router, sums_of


class ScoredRouter(Router):
  """Chooses the K experts with the largest affinity, plus a bias where `moe.balancing` moves one,
  from at most `moe.device_limit` device groups. Gates see neither the bias nor the limit.
  """

  interventions: ClassVar[tuple[str, ...]] = (*Router.interventions, 'masked_share')

  def scores(self, logits_BLE: jax.Array) -> tuple[jax.Array, jax.Array]:
    """float32 affinities_BLE, and shares_BLE: the affinities normalised to add up to one for each
    token, for P of Eq. 14.
    """
    raise NotImplementedError(f'{type(self).__name__} does not implement scores')

  def choose_by_logits(
    self, logits_BLE: jax.Array, bias_E: jax.Array | None, is_token_BL: jax.Array, k: int
  ) -> Routing:
    """`choose` from logits, for one device's own sequences."""
    moe = self.config.moe
    affinities_BLE, shares_BLE = self.scores(logits_BLE)
    ranked_BLE = affinities_BLE if bias_E is None else affinities_BLE + bias_E[None, None]
    ranked_BLE = lax.stop_gradient(ranked_BLE)
    if moe.device_limit:
      ranked_BLE = self._within_groups(ranked_BLE)
    _, experts_BLK = lax.top_k(ranked_BLE, k)
    chosen_BLK = jnp.take_along_axis(affinities_BLE, experts_BLK, axis=-1)
    stats = sums_of(logits_BLE, shares_BLE, experts_BLK, is_token_BL)
    # With K = E no expert lies below a token's cutoff; only evaluation may ask for that.
    if moe.balancing == 'quantile' and moe.experts_per_token < moe.num_experts:
      ranking = affinities_BLE, ranked_BLE, is_token_BL, moe.experts_per_token
      stats = stats._replace(excess_BEH=balancing.excess(*ranking))
    return Routing(chosen_BLK, experts_BLK, stats)

  def _within_groups(self, ranked_BLE):
    """`within_groups` by the experts that a probe's mask leaves. Masked experts rank before all
    others, where `Router.route` drops them.
    """
    moe = self.config.moe
    limited = lambda x_BLE: within_groups(x_BLE, moe.device_groups, moe.device_limit)
    if not self.probe.masked:
      return limited(ranked_BLE)
    masked_BLM = lax.top_k(ranked_BLE, self.probe.masked)[1]
    is_masked_BLE = is_one_of(masked_BLM, moe.num_experts)
    left_BLE = limited(jnp.where(is_masked_BLE, -jnp.inf, ranked_BLE))
    return jnp.where(is_masked_BLE, jnp.inf, left_BLE)

  @nn.compact
  def choose(
    self, u_BLD: jax.Array, token_ids_BL: jax.Array, is_token_BL: jax.Array, k: int
  ) -> Routing:
    del token_ids_BL
    model, moe = self.config.model, self.config.moe
    shape, axes = (model.d_model, moe.num_experts), ('width', None)
    experts_DE = sharding.param(self, 'experts', shape, axes)
    bias_E = None
    if moe.balancing != 'none':
      zeros = nn.initializers.zeros
      bias_E = sharding.param(self, 'bias', shape[1:], axes[1:], zeros, decayed=False)
    stored, batch = sharding.stored(axes, shape), sharding.spec('batch')

    def choose(u_BLD, experts_DE, bias_E, is_token_BL):
      # float32 throughout: rounding a logit to bfloat16 moves tokens to other experts.
      experts_DE = zero.gathered(experts_DE, stored, jnp.float32)
      logits_BLE = jnp.matmul(
        u_BLD.astype(jnp.float32), experts_DE, precision=lax.Precision.HIGHEST
      )
      return self.choose_by_logits(logits_BLE, bias_E, is_token_BL, k)

    specs = batch, stored.spec, sharding.spec(None), batch
    return sharding.per_shard(choose, specs, batch)(u_BLD, experts_DE, bias_E, is_token_BL)

  def telemetry(self, stats: RoutingStats) -> Telemetry:
    if stats.excess_BEH is None:
      return {}
    return {balancing.EXCESS: Reading(stats.excess_BEH.sum(axis=0), 'sum')}

  @classmethod
  def num_params(cls, config: Config) -> int:
    """The centroids e_i of Eq. 8, and the biases."""
    moe = config.moe
    return (config.model.d_model + (moe.balancing != 'none')) * moe.num_experts

  @classmethod
  def after_step(cls, params: dict, measured: dict, config: Config) -> dict:
    if config.moe.balancing == 'none':
      return params
    return params | {'bias': balancing.moved(params['bias'], measured, config)}


def within_groups(ranked_BLE: jax.Array, groups: int, limit: int) -> jax.Array:
  """ranked_BLE with −∞ outside each token's `limit` best groups of consecutive experts. A group
  ranks by its best expert (DeepSeek-V2, arXiv 2405.04434, Section 2.2.2).
  """
  *leading, experts = ranked_BLE.shape
  by_group = ranked_BLE.reshape(*leading, groups, experts // groups)
  _, best_BLM = lax.top_k(by_group.max(axis=-1), limit)
  is_best_BLG = is_one_of(best_BLM, groups)
  return jnp.where(is_best_BLG[..., None], by_group, -jnp.inf).reshape(ranked_BLE.shape)


def is_one_of(numbers_BLM: jax.Array, count: int) -> jax.Array:
  """bool (B, L, count): whether each number below `count` is among the token's M numbers."""
  return (numbers_BLM[..., None] == jnp.arange(count)[None, None, None]).any(axis=-2)
