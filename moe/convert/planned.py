"""Files whose tensors have their places before anything is written, so that several threads can
write them in any order.
"""

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np


class Planned(NamedTuple):
  """A file to be written: its header, and where every tensor begins and ends. Bytes that nobody
  writes are zeros.
  """

  name: str
  header: bytes
  spans: dict[str, tuple[int, int]]
  size: int


class Writer:
  """Writes planned files in a folder, at any place in any order."""

  def __init__(self, folder: Path, planned: Sequence[Planned]):
    self._folder, self._planned = folder, planned
    self._stack = contextlib.ExitStack()
    self._open: dict[str, tuple[int, int]] = {}  # by tensor: descriptor, first byte

  def __enter__(self) -> 'Writer':
    for file in self._planned:
      descriptor = os.open(self._folder / file.name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
      self._stack.callback(os.close, descriptor)
      _write(descriptor, file.header, 0)
      os.ftruncate(descriptor, file.size)
      self._open |= {name: (descriptor, begin) for name, (begin, _) in file.spans.items()}
    return self

  def __exit__(self, *unused) -> None:
    self._stack.close()

  def write(self, name: str, row: int, column: int, width: int, block: np.ndarray) -> None:
    """Writes a block [rows, columns] at a row and column of a tensor of `width` columns. Any thread
    may call it.
    """
    descriptor, begin = self._open[name]
    at = begin + (row * width + column) * block.itemsize
    if block.shape[1] == width:
      _write(descriptor, np.ascontiguousarray(block).reshape(-1).view(np.uint8), at)
      return
    for line in block:
      _write(descriptor, np.ascontiguousarray(line).view(np.uint8), at)
      at += width * block.itemsize


def _write(descriptor, content, at):
  left = memoryview(content)
  while left:
    count = os.pwrite(descriptor, left, at)
    left, at = left[count:], at + count
