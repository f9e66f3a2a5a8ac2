"""Measures how well one routed expert stands in for another: the held-out loss with its weights in
the other's place, beside the loss without the other.

N MoE layers, E routed experts, X experts of a layer that are measured. An expert is only replaced
by one of its own width.
"""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from moe.analysis.interventions import check_routed
from moe.config import Config
from moe.data.store import PreparedData
from moe.errors import UserError
from moe.evaluate import held_out_batches, summed_loss
from moe.parallel.sharding import replicated


class Redundancy(NamedTuple):
  """The rise of the mean loss of a token, in nats, over a sample of held-out text.

  Where `substituted_NX` is 0 the other expert does as well; where it equals `removed_NX` the other
  is no better than none.
  """

  experts_NX: np.ndarray  # int64: the experts that are replaced
  others_NX: np.ndarray  # int64: the experts whose weights they get
  substituted_NX: np.ndarray  # float64: the rise with those weights
  removed_NX: np.ndarray  # float64: the rise with weights of zero


def measure(
  config: Config,
  params: dict,
  data: PreparedData,
  pairs: int = 12,
  seed: int = 0,
  mesh: Mesh | None = None,
  max_batches: int | None = 1,
) -> Redundancy:
  """Measures `pairs` (X) experts of every layer, or all if there are no more, each with another;
  `seed` draws both. Scores all held-out text, or at most `max_batches` batches a domain.

  UserError for a model without two routed experts of one width. `mesh`: the mesh in use, if
  params lie on one.
  """
  check_routed(config)
  experts_NX, others_NX = _drawn(config, pairs, np.random.default_rng(seed))
  batches = [batch for _, batch in held_out_batches(data, config, mesh, max_batches)]

  def changed_loss(params, batch, layer, expert, other):
    return summed_loss(config, _replaced(config, params, layer, expert, other), batch)

  compiled = jax.jit(changed_loss, out_shardings=replicated(mesh))

  def loss(layer, expert, other):
    sums = [jax.device_get(compiled(params, batch, layer, expert, other)) for batch in batches]
    total, tokens = np.sum(np.asarray(sums, np.float64), axis=0)
    return total / tokens

  plain = loss(0, 0, 0)  # an expert in its own place
  substituted, removed = (
    np.array([[loss(*at) - plain for at in row] for row in rows])
    for rows in (_places(experts_NX, others_NX), _places(experts_NX, np.full_like(others_NX, -1)))
  )
  return Redundancy(experts_NX, others_NX, substituted, removed)


def _drawn(config, pairs, generator):
  """(experts_NX, others_NX), both of a pair equally wide. The first experts are the wide ones."""
  moe, layers = config.moe, config.model.num_moe_layers
  of_one_width = np.arange(moe.wide_experts), np.arange(moe.wide_experts, moe.num_experts)
  several = [experts for experts in of_one_width if len(experts) > 1]
  if not several:
    widths = f' with moe.wide_experts={moe.wide_experts}' if moe.wide_experts else ''
    raise UserError(
      f'moe.num_experts={moe.num_experts}{widths}: no expert has another of its width to stand in '
      'for it'
    )
  experts = np.concatenate(several)
  experts_NX = np.stack([generator.permutation(experts)[:pairs] for _ in range(layers)])
  first, count = np.zeros((2, moe.num_experts), np.int64)
  for group in several:
    first[group], count[group] = group[0], len(group)
  first_NX, count_NX = first[experts_NX], count[experts_NX]
  steps_NX = 1 + (generator.random(experts_NX.shape) * (count_NX - 1)).astype(np.int64)
  return experts_NX, first_NX + (experts_NX - first_NX + steps_NX) % count_NX


def _places(experts_NX, others_NX) -> Iterator[list[tuple[int, int, int]]]:
  for layer, row in enumerate(zip(experts_NX, others_NX)):
    yield [(layer, int(expert), int(other)) for expert, other in zip(*row)]


def _replaced(config, params, layer, expert, other):
  """The parameters with one expert's weights replaced by those of `other` in its layer, −1: by
  zeros.
  """
  moe, blocks = config.moe, params['moe_blocks']
  first_E, units_E = jnp.asarray(moe.first_units), jnp.asarray(moe.units_of_experts)

  def replaced(w_NUXY):
    for unit in range(moe.max_units):
      place = jnp.where(unit < units_E[expert], first_E[expert] + unit, moe.num_units)
      row_XY = (other >= 0) * w_NUXY[layer, first_E[other] + unit]
      w_NUXY = w_NUXY.at[layer, place].set(row_XY, mode='drop')
    return w_NUXY

  weights = jax.tree.map(replaced, blocks['moe']['experts'])
  return params | {'moe_blocks': blocks | {'moe': blocks['moe'] | {'experts': weights}}}
