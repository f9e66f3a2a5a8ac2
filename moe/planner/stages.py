"""How much longer a step takes than its pipeline stages work, because they wait for one another.

In `moe/pipeline_parallel.py` a stage begins a tick when it and the stage that it has just swapped
with are done with the previous tick. Stages wait for the first microbatch to arrive, for the last
one's gradients to leave, and for a stage that has more to do, such as the one with the head.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from moe.accounting import account
from moe.config import Config
from moe.parallel.sharding import shard_sizes
from moe.pipeline_parallel import partners, turn


class Stage(NamedTuple):
  """The time that a stage spends on one microbatch, in any unit."""

  forward: float
  backward: float


def stretch(config: Config, stages: int) -> float:
  """The time of a pipeline's step divided by the mean work of a stage. Counts of FLOPs and bytes
  give only that mean.
  """
  microbatches, costs = config.train.microbatches, stage_costs(config, stages)
  work = microbatches * sum(map(sum, costs)) / stages
  return elapsed(costs, microbatches) / work


def elapsed(costs: Sequence[Stage], microbatches: int) -> float:
  """The time until all stages are done. With S equal stages of forward f and backward b it is
  (M + S − 1) (f + b), as in 1F1B.
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
  """Every stage's cost in FLOPs per token. The MoE layers are dealt out to the stages; the first
  stage also has the dense layers, the last one the head.

  A backward costs a forward, twice as much again for the gradients, and with remat=full another
  forward of every block. What other remat policies recompute of a block is left out.
  """
  # 0 if all layers are dense: they are dealt out then.
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
  """Forward FLOPs per token of the head and the first `layers` layers, `dense` of them dense."""
  model = dataclasses.replace(config.model, num_layers=layers, num_dense_layers=dense)
  return account(dataclasses.replace(config, model=model)).forward_flops_per_token
