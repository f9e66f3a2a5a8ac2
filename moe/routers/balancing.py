"""Moves the biases that experts are chosen by, after every training step, without a gradient.

bias      Loss-free balancing (arXiv 2408.15664): a fixed step, up for experts with less than the
          mean load, down for the others.
quantile  Quantile balancing (Su, kexue.fm/archives/11619): the next step on the dual of the best
          balanced assignment of tokens to experts by affinity. An expert's bias is −m if as many
          tokens as it should get have an affinity more than m above their cutoff.

Both count the global batch and centre the biases: only differences of biases matter.

N MoE layers, E experts, K chosen by a token, H bins of a histogram.
"""

import math

import jax
import jax.numpy as jnp

from moe.config import Config

# The reading that 'quantile' needs.
EXCESS = '_affinity_excess'  # for `after_step` alone
# Bins of affinity − cutoff in ±_LARGEST. They are narrow around 0, where an expert's marginal
# tokens are, and widen in proportion to the distance from there.
BINS, _LARGEST, _NARROWEST = 512, 2.0, 1e-4
_SPREAD = math.asinh(_LARGEST / _NARROWEST)


def excess(
  affinities_BLE: jax.Array, ranked_BLE: jax.Array, is_token_BL: jax.Array, k: int
) -> jax.Array:
  """int32 excess_BEH: for each expert a histogram, over a sequence's real tokens, of its affinity
  minus the token's cutoff: halfway between the K-th and the next largest value in `ranked_BLE`.
  """
  best_BLK = jax.lax.top_k(ranked_BLE, k + 1)[0]
  # Outside a token's device groups experts rank −∞: the cutoff is then the K-th itself.
  last_BL, next_BL = best_BLK[..., k - 1], best_BLK[..., k]
  cutoff_BL = jnp.where(jnp.isfinite(next_BL), (last_BL + next_BL) / 2, last_BL)
  above_BLE = affinities_BLE - cutoff_BL[..., None]
  place_BLE = (jnp.arcsinh(above_BLE / _NARROWEST) / _SPREAD + 1) / 2 * BINS
  bin_BLE = jnp.clip(place_BLE.astype(jnp.int32), 0, BINS - 1)
  batch, _, experts = bin_BLE.shape
  row_BLE = jnp.arange(batch)[:, None, None], jnp.arange(experts)[None, None]
  counts = jnp.zeros((batch, experts, BINS), jnp.int32)
  return counts.at[*row_BLE, bin_BLE].add(is_token_BL[..., None].astype(jnp.int32))


def moved(bias_NE: jax.Array, measured: dict[str, jax.Array], config: Config) -> jax.Array:
  """The biases after a step. measured: the step's readings, NAME_N, and its expert_counts_NE."""
  if config.moe.balancing == 'bias':
    counts_NE = measured['expert_counts_NE'].astype(jnp.float32)
    missing_NE = counts_NE.mean(axis=1, keepdims=True) - counts_NE
    bias_NE = bias_NE + config.moe.bias_update_rate * jnp.sign(missing_NE)
  else:
    share = config.moe.experts_per_token / config.moe.num_experts
    bias_NE = -_upper_quantile(measured[f'{EXCESS}_N'], share)
  return bias_NE - bias_NE.mean(axis=1, keepdims=True)


def _upper_quantile(counts_NEH, share):
  """The value that this share of the histogram's counts lies above, interpolated linearly within
  its bin.
  """
  from_above_NEH = jnp.cumsum(counts_NEH[..., ::-1], axis=-1)[..., ::-1].astype(jnp.float32)
  wanted_NE1 = share * from_above_NEH[..., :1]
  # The last bin with at least the wanted count in it and above.
  bin_NE1 = (from_above_NEH >= wanted_NE1).sum(axis=-1, keepdims=True) - 1
  at = lambda x_NEH: jnp.take_along_axis(x_NEH, bin_NE1, axis=-1)
  inside_NE1 = at(counts_NEH.astype(jnp.float32))
  below_NE1 = (at(from_above_NEH) - wanted_NE1) / jnp.maximum(inside_NE1, 1)
  lower_NE1, upper_NE1 = _edge(bin_NE1), _edge(bin_NE1 + 1)
  return (lower_NE1 + below_NE1 * (upper_NE1 - lower_NE1))[..., 0]


def _edge(number):
  """The lower edge of a bin."""
  return _NARROWEST * jnp.sinh((2 * number / BINS - 1) * _SPREAD)
