"""Adapters of a checkpoint, added to the boxes of the matrices that they belong to.

N layers, C places for a layer's chosen experts, X and Y a matrix, r the rank.
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
  """Of a stack of matrices (N, X, Y), or of chosen ones of (N, E, X, Y)."""

  a: np.ndarray  # float32 (N, X, r) or (N, C, X, r)
  b: np.ndarray  # float32 (N, r, Y) or (N, C, r, Y)
  places_NC: np.ndarray | None
  scale: float

  def add(self, content: np.ndarray, box: Sequence[slice]) -> None:
    """Adds α/r · A B to a box of the matrices, in its place. float32, as the forward pass does."""
    *stack, rows, columns = box
    change = lambda at: np.float32(self.scale) * (self.a[at][rows] @ self.b[at][:, columns])
    for i, layer in enumerate(range(stack[0].start, stack[0].stop)):
      if self.places_NC is None:
        content[i] += change(layer)
        continue
      for place, expert in enumerate(self.places_NC[layer]):
        if stack[1].start <= expert < stack[1].stop:
          content[i, expert - stack[1].start] += change((layer, place))


# By the dotted name of the parameter.
Adapters = Mapping[str, Adapter]


def read_adapters(path: Path, config: Config, sums: Mapping[str, int]) -> Adapters:
  """Those of the checkpoint in `path`; none of a run without. ValueError if they are damaged, what
  Orbax raises if they cannot be read.
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
