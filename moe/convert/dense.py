"""Reads a dense run's parameters, a box or a layer's matrix at a time, and then checks them."""

import os
import threading
from collections import OrderedDict

import numpy as np
from etils import epath

from moe.convert import checkpoints, parameters, table
from moe.convert.checkpoints import Opened
from moe.convert.parameters import Box
from moe.warm_start.source import identity_of

_KEPT = 2  # matrices in memory: the threads fill experts of one layer, or of two


class Dense:
  """A checkpoint of a dense run. Any thread may read it."""

  def __init__(self, opened: Opened):
    """UserError if the parameters are not those of the checkpoint's config."""
    self._opened = opened
    self._placed = table.as_they_are(opened.config)
    self._stored = checkpoints.open_arrays(opened, [*self._placed.values()])
    self._matrices: OrderedDict[tuple[str, int], np.ndarray] = OrderedDict()
    self._sums: dict[str, dict[tuple, int]] = {name: {} for name in self._placed}
    self._lock = threading.Lock()

  @property
  def identity(self) -> dict:
    """What provenance.json records about the run, as for the source of a warm start."""
    directory = epath.Path(os.path.realpath(self._opened.path.parent.parent))
    return identity_of(directory, self._opened.step, self._opened.small)

  def dtype(self, name: str) -> np.dtype:
    return np.dtype(self._stored[name].array.dtype.numpy_dtype)

  def read(self, name: str, box: Box) -> np.ndarray:
    """A box of a parameter, in its stored type, with its adapter merged."""
    content = self._stored[name].array[box].read(order='C').result()
    part = parameters.checksum(self._placed[name], content, box)
    # Keyed by box: what is read twice counts once.
    self._sums[name][tuple((each.start, each.stop) for each in box)] = part
    if name in self._opened.adapters:
      self._opened.adapters[name].add(content, box)
    return content

  def matrix(self, name: str, layer: int) -> np.ndarray:
    """One layer's matrix of a stack. Keeps the last _KEPT."""
    with self._lock:
      if (name, layer) not in self._matrices:
        while len(self._matrices) >= _KEPT:
          self._matrices.popitem(last=False)
        shape = self._placed[name].shape
        box = (slice(layer, layer + 1), *(slice(0, n) for n in shape[1:]))
        self._matrices[name, layer] = self.read(name, box)[0]
      return self._matrices[name, layer]

  def check_all_read(self) -> None:
    """UserError unless every parameter was read whole and has the checksum that the run saved."""
    for name, parts in self._sums.items():
      found = sum(parts.values()) % 2**32
      if found != self._opened.checksums.get(parameters.keystr(name)):
        raise checkpoints.damaged(self._opened, parameters.keystr(name))
