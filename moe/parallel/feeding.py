"""Batches from the host onto the mesh: which part a process feeds,
and how it becomes part of the whole.
"""

import functools
import math
from collections.abc import Mapping, Set
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from moe.parallel.mesh import BATCH_AXES, size
from moe.parallel.sharding import spec


def batch_parts(sizes: Mapping[str, int] | None = None) -> int:
  """How many parts a batch is split into, on a mesh of these sizes by axis;
  without `sizes`, on the mesh in use.
  """
  return math.prod(size(axis) if sizes is None else sizes[axis] for axis in BATCH_AXES)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """The sharding of arrays whose first axis is a batch's sequences."""
  return NamedSharding(mesh, spec('batch'))


def place(batch: Any, mesh: Mesh) -> Any:
  """Global arrays of a batch, spread over the mesh, from this process's part of it
  (see `batch_share`).
  """
  if mesh.size == 1:
    return batch
  sharding, (_, count) = batch_sharding(mesh), batch_share(mesh)
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(
      sharding, x, (x.shape[0] * count, *x.shape[1:])
    ),
    batch,
  )


def place_whole(batch: Any, mesh: Mesh | None) -> Any:
  """Spreads a batch that every process has whole over the mesh, if there is one.
  Rows of zeros fill it up to equal parts.
  """
  if mesh is None or mesh.size == 1:
    return batch
  sharding, parts = batch_sharding(mesh), batch_parts(mesh.shape)

  def spread(x):
    x = np.pad(x, [(0, -x.shape[0] % parts)] + [(0, 0)] * (x.ndim - 1))
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

  return jax.tree.map(spread, batch)


@functools.cache
def batch_share(mesh: Mesh) -> tuple[int, int]:
  """(index, count): this process feeds the index-th of `count` equal parts of every batch.

  Processes whose devices hold the same rows, as those along the other axes do, feed the same part.
  """
  rows = batch_parts(mesh.shape)
  held: dict[int, set[int]] = {}
  for device, (index, *_) in batch_sharding(mesh).devices_indices_map((rows,)).items():
    held.setdefault(device.process_index, set()).add(index.start or 0)
  return share_of(jax.process_index(), held)


def share_of(process: int, held: Mapping[int, Set[int]]) -> tuple[int, int]:
  """`batch_share` of a process, from the rows that the devices of every process hold.

  The rows of a part need not be adjacent: on a TPU slice the mesh runs through the hosts' blocks of
  chips, and each block has rows from here and there. If two processes share only some of their
  rows, or some hold more than others, every process feeds the whole batch, and each device takes
  its own rows.
  """
  parts = sorted({tuple(sorted(rows)) for rows in held.values()})
  every_row = set().union(*parts)
  if len({len(part) for part in parts}) > 1 or sum(map(len, parts)) > len(every_row):
    return 0, 1
  return parts.index(tuple(sorted(held[process]))), len(parts)
