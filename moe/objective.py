"""What one microbatch, or one pipeline stage of it, adds to a step's objective and metrics. N MoE layers, E experts."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from moe.config import Config
from moe.data.packing import Batch
from moe.loss import BalanceTerms, Totals, balance_terms, cross_entropy
from moe.metrics.routing import sum_over_sequences
from moe.ops.router import RoutingStats


class Parts(NamedTuple):
  """The shares of a microbatch. They add up to the whole batch's, except for `exchange`, of which the worst counts."""

  loss: jax.Array  # cross-entropy, nats a target token of the whole batch
  terms: BalanceTerms
  sums: RoutingStats | None  # (N, E) or (N,)
  exchange: dict[str, jax.Array]  # name → (N,), see `expert_parallel.Exchange`

  @classmethod
  def of(
    cls,
    config: Config,
    loss: jax.Array,
    stats: RoutingStats | None,
    exchange: dict,
    totals: Totals,
    counts_NE: jax.Array | None,
  ) -> tuple[jax.Array, 'Parts']:
    """(the share of the objective, to be differentiated; the parts, which have no gradient).

    Args:
      stats: of this microbatch's sequences, in some layers; None where nothing is routed.
      totals: of the whole batch.
      counts_NE: the whole batch's choices in these layers, where moe.balance_scope needs them.
    """
    terms, sums = BalanceTerms(*jnp.zeros(3)), None
    if stats is not None:
      terms = balance_terms(stats, config.moe, totals, counts_NE)
      sums = sum_over_sequences(stats)
    return loss + sum(terms), jax.tree.map(lax.stop_gradient, cls(loss, terms, sums, exchange))

  def __add__(self, other: 'Parts') -> 'Parts':
    summed = jax.tree.map(jnp.add, self[:-1], other[:-1])
    return Parts(*summed, jax.tree.map(jnp.maximum, self.exchange, other.exchange))


def token_loss(
  config: Config, head_DV: jax.Array, hidden_BLD: jax.Array, batch: Batch, totals: Totals
) -> jax.Array:
  """A microbatch's share of the cross-entropy, nats a target token of the whole batch."""
  with jax.named_scope('cross_entropy'):
    targets = batch.targets_BL, batch.weights_BL
    total = cross_entropy(hidden_BLD, head_DV, *targets, config.train.loss_chunk)
  return total / totals.targets
