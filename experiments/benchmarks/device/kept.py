"""Keeps what neighbouring cases share: arrays on the device, compiled programs. It keeps one thing
at a time, to save memory.
"""

from collections.abc import Callable, Hashable
from typing import TypeVar

Made = TypeVar('Made')
_kept = {}


def kept(key: Hashable, make: Callable[[], Made]) -> Made:
  """What `make` made for this key if it was the last one; else frees the last and makes it anew."""
  if key not in _kept:
    _kept.clear()
    _kept[key] = make()
  return _kept[key]
