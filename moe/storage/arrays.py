"""Reads arrays of a checkpoint in the type they are stored in,
each device's part straight to that device.
"""

import math

import jax
import orbax.checkpoint as ocp
from etils import epath

from moe.storage.reading import read_items

# Bytes in transit to devices, for which a host needs memory beyond what its devices hold.
_UNDER_WAY = 2_000_000_000


def read(path: epath.Path, item: str, shapes: dict, where: dict) -> dict:
  """The tree of an item of the step in `path`.

  Args:
    shapes: of jax.ShapeDtypeStruct, whose types are ignored.
    where: a sharding for every leaf.

  Raises what Orbax raises if the item cannot be read, or has other shapes.
  """
  as_stored = jax.tree.map(
    lambda x, sharding: ocp.ArrayRestoreArgs(sharding=sharding, global_shape=x.shape), shapes, where
  )
  # If Orbax got `shapes` as the item, it would cast to their types.
  args = ocp.args.PyTreeRestore(restore_args=as_stored)
  return read_items(path, concurrent_gb=under_way_gb(shapes, where), **{item: args})[item]


def under_way_gb(shapes: dict, where: dict) -> int:
  """How many GB of the arrays may be in transit to the devices at once."""
  parts = jax.tree.map(lambda x, sharding: sharding.shard_shape(x.shape), shapes, where)
  largest = max(map(math.prod, jax.tree.leaves(parts, is_leaf=lambda x: isinstance(x, tuple))))
  # The largest part must fit in; no number is wider than 4 bytes.
  return -(-max(_UNDER_WAY, 4 * largest + 1) // 10**9)


def cast(tree: dict, dtype: str) -> dict:
  """The tree with its arrays cast to `dtype`. Empties `tree` and casts one array at a time:
  never are all in memory twice.
  """
  leaves, structure = jax.tree.flatten(tree)
  tree.clear()
  for i, leaf in enumerate(leaves):
    leaves[i] = None
    leaves[i] = leaf.astype(dtype)
  return jax.tree.unflatten(structure, leaves)
