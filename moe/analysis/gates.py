"""How open the gate of the shared experts is, token by token (`moe.shared_gate`).

N MoE layers, B sequences, L tokens each, C token classes, H bins of equal width.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from moe.analysis.counts import counted_classes, token_classes
from moe.analysis.interventions import shared_gates
from moe.config import Config
from moe.data.packing import Batch
from moe.data.store import PreparedData
from moe.evaluate import held_out_batches
from moe.parallel.sharding import replicated

BINS = 50


class Openness(NamedTuple):
  """Over the scored tokens of held-out text."""

  histogram_NCH: np.ndarray  # int64: tokens of the class whose gate is in the bin
  sum_NC: np.ndarray  # float64: of the class's gates

  @property
  def mean_NC(self) -> np.ndarray:
    """The mean gate of each class; NaN for one without tokens."""
    tokens_NC = self.histogram_NCH.sum(axis=2)
    unknown_NC = np.full(tokens_NC.shape, np.nan)
    return np.divide(self.sum_NC, tokens_NC, out=unknown_NC, where=tokens_NC > 0)

  def share_below(self, gate: float) -> np.ndarray:
    """The share of all tokens whose gate is below this multiple of a bin's width, by layer (N)."""
    histogram_NH = self.histogram_NCH.sum(axis=1)
    return histogram_NH[:, : round(gate * BINS)].sum(axis=1) / histogram_NH.sum(axis=1)


def openness(
  config: Config,
  params: dict,
  data: PreparedData,
  mesh: Mesh | None = None,
  max_batches: int | None = None,
) -> Openness:
  """Measures the gates on all held-out documents, or on at most `max_batches` batches a domain.
  UserError for a model without such a gate. `mesh`: the mesh in use, if params lie on one.
  """
  class_V = token_classes(data.tokenizer, config.model.vocab_size)
  of_batch = jax.jit(
    lambda params, batch: histogram(shared_gates(config, params, batch), batch, class_V),
    out_shardings=replicated(mesh),
  )
  sums = None
  for _, batch in held_out_batches(data, config, mesh, max_batches):
    counted_NCH, sum_NC = jax.device_get(of_batch(params, batch))
    found = counted_NCH.astype(np.int64), sum_NC.astype(np.float64)
    sums = found if sums is None else tuple(map(np.add, sums, found))
  return Openness(*sums)


def histogram(
  gate_NBL: jax.Array, batch: Batch, class_V: np.ndarray
) -> tuple[jax.Array, jax.Array]:
  """int32 counts_NCH and float32 sum_NC of a batch's scored tokens."""
  is_class_BLC = counted_classes(batch.tokens_BL, batch, class_V)
  bin_NBL = jnp.minimum((gate_NBL * BINS).astype(jnp.int32), BINS - 1)
  # Sums of zeros and ones are exact below 2²⁴ tokens.
  counts_NCH = jnp.einsum('blc,nblh->nch', is_class_BLC, jax.nn.one_hot(bin_NBL, BINS))
  return counts_NCH.astype(jnp.int32), jnp.einsum('blc,nbl->nc', is_class_BLC, gate_NBL)
