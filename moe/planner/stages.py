"""How much longer a step takes than the work of its pipeline's stages, which wait for one another.

`moe/pipeline_parallel.py` has a stage begin a tick when it, and the stage that it swaps with in
between, are done with the one before. Stages wait for the first microbatch to come and the last
one's gradients to leave, and for a stage that has more to do, such as the head.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from moe.accounting import account
from moe.config import Config
from moe.parallel.sharding import shard_sizes
from moe.pipeline_parallel import partners, turn


class Stage(NamedTuple):
  """What one microbatch takes of a stage, in any unit."""

  forward: float
  backward: float


def stretch(config: Config, stages: int) -> float:
  """Time of a pipeline's ticks over the mean of the stages' work in them,
  which is what counts of operations say.
  """
  microbatches, costs = config.train.microbatches, stage_costs(config, stages)
  work = microbatches * sum(map(sum, costs)) / stages
  return elapsed(costs, microbatches) / work


def elapsed(costs: Sequence[Stage], microbatches: int) -> float:
  """Until all stages are done. Of S equal ones of forward f and backward b:
  (M + S − 1) (f + b), as with 1F1B.
  """
  stages, ended = len(costs), [0.0] * len(costs)
  for tick in range(2 * (microbatches + stages - 1)):
    partner = dict(partners((tick - 1) % 2, stages))
    began = [max(ended[s], ended[partner.get(s, s)]) for s in range(stages)]
    for s, cost in enumerate(costs):
      is_backward, m = turn(tick, s, stages)
      ended[s] = began[s] + (cost[is_backward] if 0 <= m < microbatches else 0.0)
  return max(ended)


def stage_costs(config: Config, stages: int) -> list[Stage]:
  """In FLOPs a token: the first stage has the dense layers too, the last the head,
  and of the others what is left.

  Backward is a forward, two more for the gradients, and with remat=full another of every block.
  What the other policies compute again of a block is left out.
  """
  # 0 where all are dense: these are then dealt out.
  first = config.model.num_dense_layers % config.model.num_layers
  layers = config.model.num_layers - first
  head, until_dealt = _forward(config, 0, 0), _forward(config, first, first)
  layer = (account(config).forward_flops_per_token - until_dealt) / layers
  again = 3 + (config.model.remat == 'full')
  costs = []
  for s, here in enumerate(shard_sizes(layers, stages)):
    blocks, is_last = layer * here + (until_dealt - head) * (s == 0), s == stages - 1
    costs.append(Stage(0.0 if is_last else blocks, again * blocks + 3 * head * is_last))
  return costs


def _forward(config, layers, dense):
  """FLOPs a token of the first `layers` layers and the head, `dense` of them dense."""
  model = dataclasses.replace(config.model, num_layers=layers, num_dense_layers=dense)
  return account(dataclasses.replace(config, model=model)).forward_flops_per_token
