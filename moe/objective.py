"""The objective, in one place: cross-entropy + Σ weight · term over LOSSES;
and the sums that make up a step's metrics.

N MoE layers, E routed experts.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from moe.config import Config
from moe.data.packing import Batch
from moe.layers.moe_layer import Aside
from moe.losses import LOSSES, Statistics, Totals, weight
from moe.losses.cross_entropy import cross_entropy
from moe.metrics import telemetry as telemetry_lib
from moe.metrics.domains import domain_telemetry
from moe.metrics.telemetry import Telemetry


class Sums(NamedTuple):
  """What a microbatch, or one pipeline stage of it, adds to the metrics of the whole batch.
  No gradient flows through it. `add` joins two of them.
  """

  loss: jax.Array  # cross-entropy, nats a target token of the whole batch
  terms: dict[str, jax.Array]  # weighted, by name in LOSSES
  telemetry: Any  # a tree of Readings; for a whole model (with one row a layer, by domain)


def add(a: Sums, b: Sums) -> Sums:
  """The Sums of two parts of a batch as one."""
  loss, terms = jax.tree.map(jnp.add, a[:2], b[:2])
  return Sums(loss, terms, telemetry_lib.combine(a.telemetry, b.telemetry))


def nothing(shapes: Sums) -> Sums:
  """Sums of these shapes that change nothing they are added to."""
  loss, terms = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes[:2])
  return Sums(loss, terms, telemetry_lib.nothing(shapes.telemetry))


def objective(
  config: Config,
  loss: jax.Array,
  aside: Aside,
  part: Batch,
  totals: Totals,
  counts_NE: jax.Array | None,
) -> tuple[jax.Array, Sums]:
  """(a part's share of the objective, to be differentiated; what it adds to the metrics).

  Args:
    loss: the part's share of the cross-entropy, see `token_loss`.
    aside: what some layers measured of this part's sequences;
      its telemetry may be any tree of readings.
    part: the part, a microbatch.
    totals: of the whole batch.
    counts_NE: the whole batch's choices in these layers, where moe.balance_scope needs them.
  """
  terms = {name: jnp.zeros(()) for name in LOSSES}
  if aside.stats is not None:
    statistics = Statistics.of(aside.stats, config.moe, totals, counts_NE)
    terms = {
      name: weight(config, name) * term(statistics, config, totals) for name, term in LOSSES.items()
    }
  share = (part.segment_ids_BL > 0).sum() / totals.tokens
  sums = Sums(loss, terms, telemetry_lib.weighted(aside.telemetry, share))
  return total(loss, terms), jax.tree.map(lax.stop_gradient, sums)


def total(loss: jax.Array, terms: Mapping[str, jax.Array]) -> jax.Array:
  """The objective: cross-entropy + Σ weighted terms."""
  return loss + sum(terms[name] for name in LOSSES)


def token_loss(
  config: Config, head_DV: jax.Array, hidden_BLD: jax.Array, batch: Batch, totals: Totals
) -> tuple[jax.Array, Telemetry]:
  """A microbatch's share of the cross-entropy, nats a target token of the whole batch,
  and its readings by domain.
  """
  with jax.named_scope('cross_entropy'):
    targets = batch.targets_BL, batch.weights_BL
    summed, losses_BL = cross_entropy(hidden_BLD, head_DV, *targets, config.train.loss_chunk)
    by_domain = domain_telemetry(losses_BL, batch.weights_BL, batch.domains_BJ)
  return summed / totals.targets, by_domain
