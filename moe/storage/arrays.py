"""Arrays of a checkpoint, read in the type they are stored in,
each device's part straight to it.
"""

import math

import jax
import orbax.checkpoint as ocp
from etils import epath

from moe.storage.reading import read_items

# Of a host's memory that is on its way to devices: beside it a host holds what its devices do.
_UNDER_WAY = 2_000_000_000


def read(path: epath.Path, item: str, shapes: dict, where: dict) -> dict:
  """The tree of an item of the step in `path`.

  Args:
    shapes: of jax.ShapeDtypeStruct; their types are not asked for.
    where: a sharding for every leaf.

  What Orbax raises if it cannot be read, or has other shapes.
  """
  as_stored = jax.tree.map(
    lambda x, sharding: ocp.ArrayRestoreArgs(sharding=sharding, global_shape=x.shape), shapes, where
  )
  # An `item` of shapes would have Orbax cast to their types.
  args = ocp.args.PyTreeRestore(restore_args=as_stored)
  return read_items(path, concurrent_gb=under_way_gb(shapes, where), **{item: args})[item]


def under_way_gb(shapes: dict, where: dict) -> int:
  """How much of the arrays may be on its way to the devices at once."""
  parts = jax.tree.map(lambda x, sharding: sharding.shard_shape(x.shape), shapes, where)
  largest = max(map(math.prod, jax.tree.leaves(parts, is_leaf=lambda x: isinstance(x, tuple))))
  # No part may be larger than what may be under way; 4 bytes are the widest number.
  return -(-max(_UNDER_WAY, 4 * largest + 1) // 10**9)


def cast(tree: dict, dtype: str) -> dict:
  """The tree with arrays of another type. Takes those of `tree` one by one:
  never all are there twice.
  """
  leaves, structure = jax.tree.flatten(tree)
  tree.clear()
  for i, leaf in enumerate(leaves):
    leaves[i] = None
    leaves[i] = leaf.astype(dtype)
  return jax.tree.unflatten(structure, leaves)
