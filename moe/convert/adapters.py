"""Merges a checkpoint's LoRA adapters into boxes of the matrices that they adapt.

N layers, C slots for a layer's chosen experts, X and Y the sides of a matrix, r the rank.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from flax.traverse_util import unflatten_dict

from moe.config import Config
from moe.finetune import adapters, choice
from moe.layers.tuned import of_adapter, scale
from moe.parameters import declared_by_path
from moe.storage import checksums, partial


class Adapter(NamedTuple):
  """The adapter of a stack of matrices (N, X, Y), or of the chosen experts in (N, E, X, Y)."""

  a: np.ndarray  # float32 (N, X, r) or (N, C, X, r)
  b: np.ndarray  # float32 (N, r, Y) or (N, C, r, Y)
  places_NC: np.ndarray | None
  scale: float

  def add(self, content: np.ndarray, box: Sequence[slice]) -> None:
    """Adds α/r · A B to a box of the matrices in place. The product is float32, as in the forward
    pass.
    """
    *stack, rows, columns = box
    change = lambda at: np.float32(self.scale) * (self.a[at][rows] @ self.b[at][:, columns])
    for i, layer in enumerate(range(stack[0].start, stack[0].stop)):
      if self.places_NC is None:
        content[i] += change(layer)
        continue
      for place, expert in enumerate(self.places_NC[layer]):
        if stack[1].start <= expert < stack[1].stop:
          content[i, expert - stack[1].start] += change((layer, place))


# The adapters by the dotted names of the parameters that they adapt.
Adapters = Mapping[str, Adapter]


def read_adapters(path: Path, config: Config, sums: Mapping[str, int]) -> Adapters:
  """The adapters of the checkpoint in `path`, {} if the run has none. ValueError if they are
  damaged; Orbax's error if they cannot be read.
  """
  if not config.finetune.lora_rank:
    return {}
  boxes = declared_by_path(config)
  device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  read = partial.read(path, 'params', dict.fromkeys(adapters.declared(config, boxes), device))
  if fault := checksums.difference(unflatten_dict(read), sums):
    raise ValueError(fault)
  found = {}
  for target in boxes:
    if adapters.is_target(config, target):
      a, b = (np.asarray(read[*target[:-1], name]) for name in of_adapter(target[-1]))
      places_NC = choice.places(config) if target[:-1] == adapters.EXPERTS else None
      found['.'.join(target)] = Adapter(a, b, places_NC, scale(config))
  return found
