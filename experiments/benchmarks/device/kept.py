"""What cases of the same kind share: arrays on the device, compiled programs. One thing at a time,
for the memory.
"""

from collections.abc import Callable, Hashable
from typing import TypeVar

Made = TypeVar('Made')
_kept = {}


def kept(key: Hashable, make: Callable[[], Made]) -> Made:
  """What `make` made for this key, if it is the last one's; else anew, after the last is let go."""
  if key not in _kept:
    _kept.clear()
    _kept[key] = make()
  return _kept[key]
