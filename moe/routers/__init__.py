"""Routers: one file per router, and the only list of them.

To add one, write a file with a subclass of `Router`, a line in ROUTERS, and its config keys: its
name among the values of moe.router, and whatever settings it needs.
"""

from moe.routers.base import Forced, Probe, Router, sums_of
from moe.routers.hash import HashRouter
from moe.routers.sigmoid import SigmoidRouter
from moe.routers.softmax import SoftmaxRouter

ROUTERS: dict[str, type[Router]] = {
  'softmax': SoftmaxRouter,
  'sigmoid': SigmoidRouter,
  'hash': HashRouter,
}

__all__ = [
  'ROUTERS',
  'Forced',
  'HashRouter',
  'Probe',
  'Router',
  'SigmoidRouter',
  'SoftmaxRouter',
  'sums_of',
]
