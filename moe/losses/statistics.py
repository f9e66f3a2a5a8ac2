"""What every balance term is computed from. N MoE layers, B sequences, E routed experts,
K of them per token.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from moe.config import MoEConfig
from moe.ops.router import RoutingStats


class Totals(NamedTuple):
  """Totals of the whole batch, over all its parts, that sums are divided by. float32."""

  targets: jax.Array  # Σ of the targets' weights
  tokens: jax.Array  # real input tokens
  sequences: jax.Array  # sequences with at least one real token

  @classmethod
  def of(cls, weights_BL: jax.Array, segment_ids_BL: jax.Array) -> 'Totals':
    is_token_BL = segment_ids_BL > 0
    count = lambda mask: jnp.maximum(mask.sum().astype(jnp.float32), 1)
    return cls(jnp.maximum(weights_BL.sum(), 1), count(is_token_BL), count(is_token_BL.any(axis=1)))


class Statistics(NamedTuple):
  """Routing of a batch, or of a part of one: the terms of the parts add up to the batch's terms.

  With moe.balance_scope 'sequence', T of Eq. 13–14 is one sequence, and a term is the mean over the
  sequences that hold a token. With 'batch' T is the whole batch.
  """

  # f of Eq. 13: (N, B, E), or (N, E) for the batch. No gradient: choices are counted.
  loads: jax.Array
  probabilities: jax.Array  # P of Eq. 14, shaped like `loads`
  share: jax.Array | int  # weight of one row of `loads`: 1 / sequences, or 1
  sums: RoutingStats  # over the tokens of each sequence, stacked over the layers: (N, B, …)

  @classmethod
  def of(
    cls,
    sums: RoutingStats,
    moe: MoEConfig,
    totals: Totals,
    batch_counts_NE: jax.Array | None = None,
  ) -> 'Statistics':
    """batch_counts_NE: how many tokens of the whole batch chose each expert, which f needs in scope
    'batch'; default: the counts of `sums`.
    """
    experts, chosen = moe.num_experts, moe.experts_per_token
    if moe.balance_scope == 'sequence':
      counts, share = sums.counts_BE, 1 / totals.sequences
      tokens = jnp.maximum(_tokens_of_sequences(sums, moe), 1)
      probabilities = sums.probability_sums_BE / tokens  # Eq. 14
    else:
      counts = sums.counts_BE.sum(axis=1) if batch_counts_NE is None else batch_counts_NE
      share, tokens = 1, totals.tokens
      probabilities = sums.probability_sums_BE.sum(axis=1) / tokens
    if moe.gate_mass < 1:  # K is the mean number of experts taken
      all_of_row = jnp.maximum(counts.sum(axis=-1, keepdims=True), 1)
      return cls(counts * experts / all_of_row, probabilities, share, sums)
    return cls(counts * (experts / chosen) / tokens, probabilities, share, sums)


def _tokens_of_sequences(sums: RoutingStats, moe: MoEConfig) -> jax.Array:
  """tokens_NB1: the number of real tokens in each sequence. With K choices each it is Σ counts / K.
  Where tokens take fewer it is the sum of their probabilities, which add up to one for each.
  """
  if moe.gate_mass < 1:
    return jnp.round(lax.stop_gradient(sums.probability_sums_BE.sum(axis=-1, keepdims=True)))
  return sums.counts_BE.sum(axis=-1, keepdims=True) / moe.experts_per_token
