"""How well one routed expert stands in for another: the held-out loss with its weights in the
other's place, beside the loss without the other.

N MoE layers, E routed experts, X experts of a layer that are looked at.
"""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from moe.analysis.interventions import check_routed
from moe.config import Config
from moe.data.store import PreparedData
from moe.errors import UserError
from moe.evaluate import held_out_batches, summed_loss
from moe.parallel.sharding import replicated


class Redundancy(NamedTuple):
  """How far the mean loss of a token rises, nats, over a sample of held-out text.

  0 substituted: another expert does as well; as much as removed: it is no better than none.
  """

  experts_NX: np.ndarray  # int64: those that are replaced
  others_NX: np.ndarray  # int64: whose weights they get
  substituted_NX: np.ndarray  # float64
  removed_NX: np.ndarray  # float64: with weights of zero


def measure(
  config: Config,
  params: dict,
  data: PreparedData,
  pairs: int = 12,
  seed: int = 0,
  mesh: Mesh | None = None,
  max_batches: int | None = 1,
) -> Redundancy:
  """Of `pairs` (X) experts of every layer, each with another, drawn by `seed`: of all of them and
  others where there are no more. Of all held-out text, or at most `max_batches` batches a domain.

  UserError for a model without two routed experts, or with wider ones. `mesh`: the one in use,
  where params lie on one.
  """
  check_routed(config)
  experts = config.moe.num_experts
  if experts < 2:
    raise UserError(f'moe.num_experts={experts}: one expert has no other to stand in for it')
  if config.moe.wide_experts:
    raise UserError(
      f'moe.wide_experts={config.moe.wide_experts}: experts stand in for others of their own width'
    )
  layers = config.model.num_layers - config.model.num_dense_layers
  generator = np.random.default_rng(seed)
  experts_NX = np.stack(
    [generator.permutation(experts)[: min(pairs, experts)] for _ in range(layers)]
  )
  others_NX = (experts_NX + generator.integers(1, experts, experts_NX.shape)) % experts
  batches = [batch for _, batch in held_out_batches(data, config, mesh, max_batches)]

  def changed_loss(params, batch, layer, expert, other):
    return summed_loss(config, _replaced(params, layer, expert, other), batch)

  compiled = jax.jit(changed_loss, out_shardings=replicated(mesh))

  def loss(layer, expert, other):
    sums = [jax.device_get(compiled(params, batch, layer, expert, other)) for batch in batches]
    total, tokens = np.sum(np.asarray(sums, np.float64), axis=0)
    return total / tokens

  plain = loss(0, 0, 0)  # in its own place
  substituted, removed = (
    np.array([[loss(*at) - plain for at in row] for row in rows])
    for rows in (_places(experts_NX, others_NX), _places(experts_NX, np.full_like(others_NX, -1)))
  )
  return Redundancy(experts_NX, others_NX, substituted, removed)


def _places(experts_NX, others_NX) -> Iterator[list[tuple[int, int, int]]]:
  for layer, row in enumerate(zip(experts_NX, others_NX)):
    yield [(layer, int(expert), int(other)) for expert, other in zip(*row)]


def _replaced(params, layer, expert, other):
  """Parameters with one expert's weights replaced by another's of its layer; −1: by zeros."""
  blocks = params['moe_blocks']
  weights = {
    name: w_NEXY.at[layer, expert].set((other >= 0) * w_NEXY[layer, other])
    for name, w_NEXY in blocks['moe']['experts'].items()
  }
  return params | {'moe_blocks': blocks | {'moe': blocks['moe'] | {'experts': weights}}}
