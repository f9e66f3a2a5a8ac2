"""Parameters as decoding takes them, a layer at a time.

A scan over the stacks, as in training, would copy each layer's weights, those of all its experts
included, for every token. On a CPU layers are views of the stacks instead. On an accelerator they
are arrays of their own, except for the routed experts, most of the model: kernels get those of all
layers and the number of the layer to read.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from moe.config import Config, ModelConfig
from moe.layers import experts, tuned
from moe.model import stack_names
from moe.ops import implementation
from moe.ops.quantized import as_products_take
from moe.parallel import mesh, sharding
from moe.parameters import declared_by_path, is_exact

_LANES = 128  # of a TPU's tile


class Layers(NamedTuple):
  """A stack on an accelerator."""

  own: list[dict]  # every layer's parameters
  experts: dict[str, jax.Array]  # w_NEXY of all layers' routed experts; {} where `own` has them


def by_layer(config: Config, params: dict, release: bool = False) -> dict:
  """params as `layers.advance` takes them; the result of an earlier call is returned as it is.

  On a CPU each stack becomes a list of its layers' parameters, views of the same memory. Experts in
  bfloat16 are viewed as their bits, which the op reads straight from there. On an accelerator
  parameters are `as_used`, so that no token waits for more, and each stack becomes `Layers`. On a
  mesh of CPUs they stay as they are.

  release: delete the arrays that were copied; nobody else may need them.
  """
  stacks = [params[name] for name in stack_names(config.model)]
  if any(isinstance(stack, list | Layers) for stack in stacks):
    return params
  if on_accelerator():
    done = (lambda w: w.delete()) if release else lambda w: None
    return split(config, as_used(config, params, done), done=done)
  if not mesh.is_one_device():
    return params
  return params | {
    name: [_viewed(config, params[name], layer) for layer in range(depth(config.model, name))]
    for name in stack_names(config.model)
  }


def on_accelerator() -> bool:
  """Whether programs are for an accelerator, by the same test as that of the ops."""
  return implementation.platform() != 'cpu'


def _viewed(config, stack, layer):
  layer_params = jax.tree.map(lambda w: np.asarray(w)[layer], stack)
  weights = _experts_in(layer_params)
  # Fine-tuning puts or adds its own weights into these, which needs numbers, not bits.
  if config.ops.implementation in ('auto', 'xla') and tuned.CHOSEN not in weights:
    for name, w in weights.items():
      is_bfloat16 = isinstance(w, np.ndarray) and w.dtype == jnp.bfloat16
      weights[name] = w.view(np.uint16) if is_bfloat16 else w
  return jax.device_put(layer_params)


def as_used(
  config: Config, params: dict, done: Callable[[jax.Array], None] = lambda w: None
) -> dict:
  """params for an accelerator: matrices in the dtype of their products and, on a TPU, experts
  padded to whole tiles. done: called with each array that was replaced.
  """

  def used(path, w):
    box = boxes.get(path)
    if box is None or is_exact(path, box):
      return w
    new = as_products_take(w, config.model.dtype)
    if in_stack and 'experts' in path:
      new = _in_whole_lanes(new, box.axes)
    for old, made in zip(*map(jax.tree.leaves, (w, new)), strict=True):
      if made is not old:
        done(old)
    return new

  in_stack = implementation.platform() == 'tpu' and experts.can_stay_stacked(config)
  boxes, flat = declared_by_path(config), flatten_dict(params)
  in_stack &= not any(path[-1] == tuned.CHOSEN for path in flat)
  return unflatten_dict({path: used(path, w) for path, w in flat.items()})


def _in_whole_lanes(w, axes):
  """Stacked experts with each device's part of the hidden width zero-padded to whole tiles. A TPU
  would store other widths transposed, and transpose all of them back for every token.
  """
  stored = sharding.stored((None, *axes[1:]), w.shape)
  split = (math.prod(map(mesh.size, by)) for by in stored.split)
  parts = [size // by for size, by in zip(w.shape, split, strict=True)]
  missing = [-size % _LANES if axis == 'hidden' else 0 for axis, size in zip(axes, parts)]
  if not any(missing):
    return w

  def pad(array):
    *leading, rows, columns = missing
    # An array of a quantized matrix may have one row for several, or one for all, which stays.
    rows = rows * array.shape[-2] // parts[-2] if array.shape[-2] > 1 else 0
    return jnp.pad(array, [(0, count) for count in (*leading, rows, columns)])

  specs = sharding.specs(w, stored)
  return sharding.per_shard(lambda w: jax.tree.map(pad, w), (specs,), specs)(w)


def split(
  config: Config,
  params: dict,
  cut: Callable[[Any, int], Any] = lambda w, layer: w[layer],
  done: Callable[[Any], None] = lambda w: None,
) -> dict:
  """Each stack as `Layers`, made by `cut(w, layer)` of its arrays. done: called with each array
  that was cut.
  """

  def cut_up(w, count):
    pieces = [cut(w, layer) for layer in range(count)]
    done(w)
    return pieces

  def of(name):
    stack, count, weights = params[name], depth(config.model, name), {}
    if tuned.CHOSEN not in _experts_in(stack) and experts.can_stay_stacked(config):
      weights = _experts_in(stack)
    if weights:
      stack = stack | {'moe': {key: w for key, w in stack['moe'].items() if key != 'experts'}}
    pieces = jax.tree.map(lambda w: cut_up(w, count), stack)
    is_list = lambda each: isinstance(each, list)
    own = [
      jax.tree.map(lambda of_w, layer=layer: of_w[layer], pieces, is_leaf=is_list)
      for layer in range(count)
    ]
    return Layers(own, weights)

  return params | {name: of(name) for name in stack_names(config.model)}


def of_layer(stack: Any, layer: int) -> dict:
  """A layer's parameters, from a stack as `by_layer` makes it or as training has it."""
  match stack:
    case list():
      return stack[layer]
    case Layers(own, weights) if not weights:
      return own[layer]
    case Layers(own, weights):
      in_stacks = weights | {experts.LAYER: np.int32(layer)}
      return own[layer] | {'moe': own[layer]['moe'] | {'experts': in_stacks}}
    case _:
      return jax.tree.map(lambda w: w[layer], stack)


def _experts_in(params):
  """The routed experts' part, {} where there are none."""
  return params.get('moe', {}).get('experts', {})


def depth(model: ModelConfig, name: str) -> int:
  """The number of layers of one of `stack_names`."""
  dense = model.num_dense_layers
  return dense if name == 'dense_blocks' else model.num_layers - dense
