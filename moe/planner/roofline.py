"""The time of a step from counts and a chip's public figures: the least time that each resource
needs for its share.

The step takes as long as its slowest term if that hides all the others, and as long as their sum if
nothing overlaps. The counts include the time that a pipeline's stages wait for one another (see
`stages.py`).

Interconnect: a group of devices that spans torus sides a₁ … a_k sends over 2k links at once if the
sides wrap around, and over k if they do not. All-to-all crosses the middle of the longest side a,
with the bandwidth of 8/a links if it wraps and 4/a if not. The GPUs of a server all send at once
through a switch. A group that spans servers sends everything at the network's rate.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from moe.chips import Chip
from moe.planner.collectives import Collective


class Roofline(NamedTuple):
  """Seconds per step that each resource needs."""

  compute: float
  hbm: float
  interconnect: float

  @property
  def step(self) -> float:
    """Seconds per step if everything overlaps."""
    return max(self)

  @property
  def binds(self) -> str:
    return max(self._fields, key=lambda term: getattr(self, term))


def roofline(
  chip: Chip,
  sides: Sequence[int],
  coordinates,
  flops: float,
  hbm_bytes: float,
  collectives: Sequence[Collective],
  mesh_shape: dict[str, int],
) -> Roofline:
  """The roofline of one device's FLOPs and bytes. `coordinates` (devices, dimensions) are those of
  the mesh's devices in the torus.
  """
  interconnect = 0.0
  for one in collectives:
    spanned = spanned_sides(one.axes, mesh_shape, coordinates)
    far = chip.server and spans_servers(one.axes, mesh_shape, chip.server)
    rate = chip.network if far else bandwidth(chip, sides, spanned, one.kind)
    interconnect += one.times * one.sent / rate
  return Roofline(flops / chip.flops, hbm_bytes / chip.hbm, interconnect)


def bandwidth(chip: Chip, sides: Sequence[int], spanned: dict[int, int], kind: str) -> float:
  """Bytes per second that a device of a group sends. `spanned`: torus dimension → number of the
  group's positions in it.
  """
  if not chip.torus or not spanned:
    return chip.link
  wrapped = {
    dimension: wraps(chip, sides, dimension) and size == sides[dimension]
    for dimension, size in spanned.items()
  }
  if kind in ('all-to-all', 'ragged-all-to-all'):
    return min(chip.link * (8 if wrapped[d] else 4) / max(size, 4) for d, size in spanned.items())
  if kind == 'collective-permute':  # one neighbour each
    return chip.link
  return chip.link * sum(2 if wrapped[d] else 1 for d in spanned)


def wraps(chip: Chip, sides: Sequence[int], dimension: int) -> bool:
  """Whether links join the ends of a side: of every side on v5p if all are multiples of 4, and of
  sides of 16 on v5e and v6e.
  """
  if chip.name == 'v5p':
    return all(side % 4 == 0 for side in sides)
  return sides[dimension] == 16


def spanned_sides(axes: Sequence[str], mesh_shape: dict[str, int], coordinates) -> dict[int, int]:
  """Torus dimension → number of positions in it of the first device's group along `axes`, for
  dimensions with more than one.
  """
  if coordinates is None:
    return {}
  group = _grid(mesh_shape)[
    tuple(slice(None) if axis in axes else 0 for axis in mesh_shape)
  ].reshape(-1)
  counts = {
    d: len(set(column)) for d, column in enumerate(np.asarray(coordinates)[group].T.tolist())
  }
  return {dimension: count for dimension, count in counts.items() if count > 1}


def spans_servers(axes: Sequence[str], mesh_shape: dict[str, int], server: int) -> bool:
  """Whether any group along `axes` has devices of more than one server. Devices are numbered server
  by server.
  """
  server_of = _grid(mesh_shape) // server
  along = [dimension for dimension, axis in enumerate(mesh_shape) if axis in axes]
  return any((server_of != server_of.take([0], dimension)).any() for dimension in along)


def _grid(mesh_shape):
  return np.arange(math.prod(mesh_shape.values())).reshape(tuple(mesh_shape.values()))


def by_kind_and_axes(collectives: Sequence[Collective]) -> dict[str, dict[str, float]]:
  """kind → 'axis' or 'axis+axis' → bytes that a device sends per step."""
  table = defaultdict(lambda: defaultdict(float))
  for one in collectives:
    table[one.kind]['+'.join(one.axes)] += one.times * one.sent
  return {kind: dict(row) for kind, row in table.items()}
