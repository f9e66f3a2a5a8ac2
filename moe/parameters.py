"""The parameters of a config's model: what each declares, which of them weight decay acts on,
and how they are sharded over a mesh.
"""

import functools
from typing import Any

import jax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from moe.config import Config
from moe.finetune import adapters, trained
from moe.model import init_declared, init_params
from moe.parallel import sharding
from moe.parallel.sharding import Declared, is_declared


@functools.cache
def declared(config: Config) -> dict:
  """The parameter tree as `sharding.Declared` boxes, which hold shapes and types."""
  boxes = jax.eval_shape(lambda: init_declared(config, jax.random.key(0)))
  sharding.unboxed(boxes)  # raises UserError for parameters that declare nothing
  return boxes


def declared_by_path(config: Config) -> dict[tuple[str, ...], Declared]:
  """`declared`, flattened: the box of each parameter by its path."""
  return flatten_dict(declared(config))


def is_exact(path: tuple[str, ...], box: Declared) -> bool:
  """Whether a parameter is used as it is, in float32, neither rounded nor quantized. This holds for
  a layer's vectors, such as norm scales and gates, and for all that any router has.
  """
  is_vector = sum(axis != 'layers' for axis in box.axes) < 2
  return is_vector or 'router' in path


def init(config: Config, key: jax.Array) -> dict:
  """A run's parameters: the model's as `model.init_params`, and adapters."""
  params = init_params(config, key)
  if not config.finetune.lora_rank:
    return params
  more = adapters.make(config, declared(config), jax.random.fold_in(key, 1))
  return unflatten_dict(flatten_dict(params) | more)


def decayed(config: Config) -> dict:
  """The trained part of the parameter tree as booleans: whether weight decay acts on each."""
  boxes = trained.trained_boxes(config, declared(config))
  return jax.tree.map(lambda box: box.decayed, boxes, is_leaf=is_declared)


def shardings(config: Config, mesh: Mesh, tree: Any) -> Any:
  """A NamedSharding for every leaf of a `TrainState`, or of its parameters."""
  boxes = trained.declared(config, declared(config))
  return sharding.shardings(mesh, tree, boxes, config.mesh.zero)
