"""What training a part of a model costs: parameters and optimizer state. Starts no device."""

import dataclasses
import math
from typing import NamedTuple

import jax
from flax.traverse_util import flatten_dict

from moe import expert_choice
from moe.config import Config, FinetuneConfig, OpsConfig
from moe.finetune.trained import filled, trained_boxes
from moe.optimizer import make_optimizer
from moe.parallel.sharding import is_declared
from moe.parameters import declared


class Cost(NamedTuple):
  """Exact integers."""

  trained_params: int
  # Optimizer state on all devices together, including the empty places of layers that have fewer
  # chosen experts than others.
  optimizer_bytes: int


def cost(config: Config) -> Cost:
  """The cost of a config whose choice is settled (`choice.settled`)."""
  # 'auto' would ask the device; the implementation of an op changes no shape.
  config = dataclasses.replace(config, ops=OpsConfig('reference'))
  boxes = trained_boxes(config, declared(config))
  values = lambda of: jax.tree.map(of, boxes, is_leaf=is_declared)
  optimizer = make_optimizer(config.optimizer, values(lambda box: box.decayed), 0.0)
  state = jax.eval_shape(optimizer.init, values(lambda box: box.value))
  size = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(state))
  params = sum(filled(config, path, box) for path, box in flatten_dict(boxes).items())
  return Cost(params, size)


def in_words(config: Config) -> str:
  """One line on a run that trains a part of its model; '' for one that trains all."""
  if config.finetune == FinetuneConfig():
    return ''
  ours = cost(config)
  whole = cost(dataclasses.replace(config, finetune=FinetuneConfig()))
  chosen = expert_choice.parse(config.finetune.experts)
  experts = (
    f', {sum(map(len, chosen)):,} of {len(chosen) * config.moe.num_experts:,} routed experts'
    if chosen
    else ''
  )
  share = ours.trained_params / whole.trained_params
  return (
    f'finetune.trainable={config.finetune.trainable}: {ours.trained_params:,} of '
    f'{whole.trained_params:,} parameters ({share:.2%}){experts}; optimizer state '
    f'{ours.optimizer_bytes / 1e6:,.1f} MB, of all parameters {whole.optimizer_bytes / 1e6:,.1f} MB'
  )
