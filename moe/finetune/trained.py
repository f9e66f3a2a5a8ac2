"""The part of the parameters that is trained, as a tree of its own.

The tree of parameters is split in two, the trained and the frozen part, nested dicts like the
model's own. From the stacked experts the chosen ones of each layer are gathered, in as many places
as the layer with most of them needs. A place that stays empty holds zeros, whose gradient is zero.

N MoE layers, E routed experts, C places for a layer's chosen experts, X and Y any matrix.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from moe.config import Config
from moe.finetune import adapters, choice
from moe.finetune.adapters import EXPERTS
from moe.layers.tuned import CHOSEN, MATRICES, of_chosen, put, take
from moe.parallel.sharding import Declared


def split(config: Config, params: dict) -> tuple[dict, dict]:
  """(trained, frozen) of a run's parameters; together they make what the model takes, see `join`.

  Pure, and cheap: trained experts are copies of their rows, all other leaves are as they are.
  """
  flat = flatten_dict(params)
  trained = {path: x for path, x in flat.items() if _is_trained(config, path)}
  frozen = {path: x for path, x in flat.items() if path not in trained}
  if config.finetune.experts:
    frozen[*EXPERTS, CHOSEN] = jnp.asarray(choice.places(config))
  for name in _rows_of(config):
    trained[*EXPERTS, of_chosen(name)] = jax.vmap(take)(flat[*EXPERTS, name], choice.places(config))
  return unflatten_dict(trained), unflatten_dict(frozen)


def join(trained: dict, frozen: dict) -> dict:
  """The two parts as one tree, which a model's `apply` takes. Beside the model's own parameters it
  has chosen experts, adapters, and which experts they belong to.
  """
  if not frozen:
    return trained
  return unflatten_dict(flatten_dict(frozen) | flatten_dict(trained))


def put_back(config: Config, params: dict, trained: dict) -> dict:
  """A run's parameters with the trained part in its places; all else is as it was."""
  flat, new = flatten_dict(params), flatten_dict(trained)
  for name in _rows_of(config):
    rows_NCXY = new.pop((*EXPERTS, of_chosen(name)))
    flat[*EXPERTS, name] = jax.vmap(put)(flat[*EXPERTS, name], choice.places(config), rows_NCXY)
  return unflatten_dict(flat | new)


def as_applied(config: Config, params: dict) -> dict:
  """A run's parameters as a model's `apply` takes them: if experts have adapters, it adds which
  experts those are. Parameters without such adapters, merged ones for example, stay as they are.
  """
  flat = flatten_dict(params)
  if not any(adapters.is_adapter(path) for path in flat if path[: len(EXPERTS)] == EXPERTS):
    return params
  return unflatten_dict(flat | {(*EXPERTS, CHOSEN): jnp.asarray(choice.places(config))})


def declared(config: Config, boxes: dict) -> dict:
  """The boxes of a run's parameters, the model's own and adapters, and beside them those of the
  chosen experts.

  boxes: those of the model's own.
  """
  flat = flatten_dict(boxes)
  more = adapters.declared(config, flat)
  for name in _rows_of(config):
    box = flat[*EXPERTS, name]
    layers, _, *matrix = box.value.shape
    shape = (layers, choice.places(config).shape[1], *matrix)
    axes = (box.axes[0], None, *box.axes[2:])
    rows = Declared(jax.ShapeDtypeStruct(shape, box.value.dtype), axes, box.decayed)
    more[*EXPERTS, of_chosen(name)] = rows
  return unflatten_dict(flat | more)


def trained_boxes(config: Config, boxes: dict) -> dict:
  """The boxes of the trained part, given those of a model's parameters."""
  flat = flatten_dict(declared(config, boxes))
  return unflatten_dict({path: box for path, box in flat.items() if _is_trained(config, path)})


def filled(config: Config, path: tuple[str, ...], box: Declared) -> int:
  """How many elements a trained array has, without those of places that no expert fills."""
  size = int(np.prod(box.value.shape))
  if not config.finetune.experts or path[: len(EXPERTS)] != EXPERTS:
    return size
  places = choice.places(config)
  return size // places.size * int((places < config.moe.num_units).sum())


def _rows_of(config: Config) -> tuple[str, ...]:
  """The matrices whose rows for the chosen experts are trained directly, without adapters."""
  return MATRICES if config.finetune.trainable == 'experts' else ()


def _is_trained(config: Config, path: tuple[str, ...]) -> bool:
  match config.finetune.trainable:
    case 'all':
      return True
    case 'router_frozen':
      return 'router' not in path
  return adapters.is_adapter(path) or path[-1] in map(of_chosen, _rows_of(config))
