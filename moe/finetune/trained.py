"""The part of the parameters that is trained, as a tree of its own.

A tree of parameters in two: what is trained, and what is frozen, nested dicts as the model's own.
Of stacked experts the chosen ones of each layer are gathered, in as many places as the layer with
most of them needs; a place that stays empty holds zeros, whose gradient is zero.

N MoE layers, E routed experts, C places for a layer's chosen experts, X and Y any matrix.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from moe.config import Config
from moe.finetune import choice
from moe.layers.tuned import CHOSEN, MATRICES, of_chosen, put, take
from moe.parallel.sharding import Declared

_EXPERTS = ('moe_blocks', 'moe', 'experts')


def split(config: Config, params: dict) -> tuple[dict, dict]:
  """(trained, frozen) of a model's parameters; together they make what the model takes, see `join`.

  Pure, and cheap: trained experts are copies of their rows, all other leaves are as they are.
  """
  flat = flatten_dict(params)
  trained = {path: x for path, x in flat.items() if _is_trained(config, path)}
  frozen = {path: x for path, x in flat.items() if path not in trained}
  if config.finetune.trainable == 'experts':
    places_NC = places(config)
    frozen[*_EXPERTS, CHOSEN] = jnp.asarray(places_NC)
    for name in MATRICES:
      w_NEXY = flat[*_EXPERTS, name]
      trained[*_EXPERTS, of_chosen(name)] = jax.vmap(take)(w_NEXY, places_NC)
  return unflatten_dict(trained), unflatten_dict(frozen)


def join(trained: dict, frozen: dict) -> dict:
  """The two parts as one tree, which a model's `apply` takes: chosen experts beside those that
  they stand for.
  """
  if not frozen:
    return trained
  return unflatten_dict(flatten_dict(frozen) | flatten_dict(trained))


def put_back(config: Config, params: dict, trained: dict) -> dict:
  """A model's parameters with the trained part in its places; all else is as it was."""
  flat, new = flatten_dict(params), flatten_dict(trained)
  if config.finetune.trainable == 'experts':
    for name in MATRICES:
      rows_NCXY = new.pop((*_EXPERTS, of_chosen(name)))
      w_NEXY = flat[*_EXPERTS, name]
      flat[*_EXPERTS, name] = jax.vmap(put)(w_NEXY, places(config), rows_NCXY)
  return unflatten_dict(flat | new)


def declared(config: Config, boxes: dict) -> dict:
  """The boxes of a model's parameters, `parameters.declared`, and of chosen experts beside them."""
  flat = flatten_dict(boxes)
  if config.finetune.trainable == 'experts':
    for name in MATRICES:
      box, count = flat[*_EXPERTS, name], places(config).shape[1]
      layers, _, *matrix = box.value.shape
      rows = jax.ShapeDtypeStruct((layers, count, *matrix), box.value.dtype)
      axes = (box.axes[0], None, *box.axes[2:])
      flat[*_EXPERTS, of_chosen(name)] = Declared(rows, axes, box.decayed)
  return unflatten_dict(flat)


def trained_boxes(config: Config, boxes: dict) -> dict:
  """The trained part as boxes, given those of a model's parameters."""
  flat = flatten_dict(declared(config, boxes))
  return unflatten_dict({path: box for path, box in flat.items() if _is_trained(config, path)})


def places(config: Config) -> np.ndarray:
  """int32 (N, C): the chosen experts of each layer; in places that stay empty numbers from E on,
  each another one, which no row has.
  """
  chosen, experts = choice.parse(config.finetune.experts), config.moe.num_experts
  count = max(map(len, chosen))
  empty = range(experts, experts + count)
  filled = [[*layer, *empty[: count - len(layer)]] for layer in chosen]
  return np.array(filled, np.int32)


def in_places(config: Config, path: tuple[str, ...]) -> bool:
  """Whether a trained array has a leading (N, C): places for chosen experts."""
  return config.finetune.trainable == 'experts' and path[: len(_EXPERTS)] == _EXPERTS


def _is_trained(config: Config, path: tuple[str, ...]) -> bool:
  if config.finetune.trainable == 'experts':
    return path[-1] in map(of_chosen, MATRICES)
  return config.finetune.trainable == 'all' or 'router' not in path
