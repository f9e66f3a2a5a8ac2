"""How much a text needs each expert (ESFT, arXiv 2407.01906, Section 3): by its gates,
and by how often it is chosen.

N MoE layers, B sequences, L tokens each, E routed experts, K chosen by a token.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh

from moe.analysis.interventions import routing
from moe.config import Config
from moe.data.packing import Batch
from moe.data.store import PreparedData
from moe.evaluate import held_out_batches
from moe.parallel.sharding import replicated


class Relevance(NamedTuple):
  """Sums over a text's tokens."""

  gates_NE: np.ndarray  # float64: the gates of the tokens that chose the expert
  counts_NE: np.ndarray  # int64: how many those are
  tokens: int


def relevance(
  config: Config,
  params: dict,
  data: PreparedData,
  mesh: Mesh | None = None,
  max_batches: int | None = None,
) -> Relevance:
  """The relevance of experts to all held-out documents, or to at most `max_batches` batches a
  domain. Each token counts once, where it is scored. UserError for a model without routed experts.

  `mesh`: the mesh in use, if params lie on one.
  """
  of_batch = jax.jit(
    lambda params, batch: _of_batch(config, params, batch), out_shardings=replicated(mesh)
  )
  gates, counts, tokens = 0.0, 0, 0
  for _, batch in held_out_batches(data, config, mesh, max_batches):
    gates_NE, counts_NE, count = jax.device_get(of_batch(params, batch))
    gates = gates + gates_NE.astype(np.float64)
    counts, tokens = counts + counts_NE.astype(np.int64), tokens + int(count)
  return Relevance(gates, counts, tokens)


def _of_batch(config: Config, params: dict, batch: Batch):
  choices = routing(config, params, batch)
  is_counted_BL = batch.weights_BL > 0

  def of_layer(layer):
    taken_BLK, gates_BLK = layer
    is_chosen_BLKE = jax.nn.one_hot(taken_BLK, config.moe.num_experts)
    # Sums of zeros and ones in float32 are exact below 2²⁴ tokens.
    counts_E = is_chosen_BLKE.sum(axis=(0, 1, 2)).astype(jnp.int32)
    return jnp.einsum('blke,blk->e', is_chosen_BLKE, gates_BLK), counts_E

  gates_NE, counts_NE = lax.map(of_layer, (choices.taken(is_counted_BL), choices.gates_NBLK))
  return gates_NE, counts_NE, is_counted_BL.sum()
