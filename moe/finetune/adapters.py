"""Makes low-rank adapters (LoRA, arXiv 2106.09685), and merges them: A and B beside a matrix W,
which is used as W + α/r · A B.

N layers of a stack, E routed experts, C places for a layer's chosen ones, X and Y any matrix.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from moe.config import Config
from moe.finetune import choice
from moe.keys import ATTENTION_TARGETS
from moe.layers.tuned import MATRICES, add, of_adapter, scale
from moe.ops.matmul import batched
from moe.parallel.sharding import Declared

Path = tuple[str, ...]
EXPERTS = ('moe_blocks', 'moe', 'experts')


def is_adapter(path: Path) -> bool:
  return path[-1].endswith(of_adapter(''))


def is_target(config: Config, path: Path) -> bool:
  """Whether a parameter of the model has an adapter."""
  f = config.finetune
  if not f.lora_rank:
    return False
  if path[:-1] == EXPERTS:
    return 'experts' in f.lora_targets and path[-1] in MATRICES
  wanted = {*f.lora_targets, *(ATTENTION_TARGETS if 'attention' in f.lora_targets else ())}
  return path[-2:-1] == ('attention',) and path[-1] in wanted & {*ATTENTION_TARGETS}


def declared(config: Config, boxes: Mapping[Path, Declared]) -> dict[Path, Declared]:
  """The boxes of all adapters, given those of a model's parameters."""
  return {
    path: box
    for target, w in boxes.items()
    if is_target(config, target)
    for path, box in _of(config, target, w)
  }


def make(config: Config, boxes: dict, key: jax.Array) -> dict[Path, jax.Array]:
  """Adapters before the first step: A from N(0, 1/X), B zero, so that W is unchanged.

  boxes: those of a model's parameters.
  """
  made = {}
  for number, (path, box) in enumerate(sorted(declared(config, flatten_dict(boxes)).items())):
    shape = box.value.shape
    made[path] = jnp.zeros(shape)
    if path[-1].endswith(of_adapter('')[0]):
      made[path] = jax.random.normal(jax.random.fold_in(key, number), shape) * shape[-2] ** -0.5
  return made


def merged(config: Config, params: dict) -> dict:
  """The model's own parameters, with adapters added to their matrices, from all of a run's
  parameters or some. Adds in float32, as a forward pass does. Donates the matrices, so that never
  all are in memory twice.
  """
  if not config.finetune.lora_rank:
    return params
  flat = flatten_dict(params)
  own = {path: x for path, x in flat.items() if not is_adapter(path)}
  for path in own:
    if is_target(config, path):
      a, b = (flat[*path[:-1], name] for name in of_adapter(path[-1]))
      places = choice.places(config) if path[:-1] == EXPERTS else None
      merge = jax.jit(_merge, donate_argnums=0, out_shardings=own[path].sharding)
      own[path] = merge(own[path], places, a, b, scale(config))
  return unflatten_dict(own)


def _merge(w, places_NC, a, b, scale):
  if places_NC is None:
    return w + scale * batched(a, b)
  return jax.vmap(add, in_axes=(0, 0, 0, 0, None))(w, places_NC, a, b, scale)


def _of(config, target, w):
  """(path, box) of A and B of one matrix."""
  stack, axes = list(w.value.shape[:-2]), list(w.axes[:-2])
  if target[:-1] == EXPERTS:
    stack[1], axes[1] = choice.places(config).shape[1], None
  (x, y), r = w.value.shape[-2:], config.finetune.lora_rank
  shapes = (*stack, x, r), (*stack, r, y)
  of_axes = (*axes, w.axes[-2], None), (*axes, None, w.axes[-1])
  for name, shape, each in zip(of_adapter(target[-1]), shapes, of_axes, strict=True):
    yield (*target[:-1], name), Declared(jax.ShapeDtypeStruct(shape, w.value.dtype), each, True)
