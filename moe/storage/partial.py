"""Some arrays of a checkpoint, by name: their shapes and types, and reading each into its sharding.

A name is the tuple of keys on the way to an array: ('moe_blocks', 'moe', 'router', 'experts').
"""

from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from moe.storage.arrays import under_way_gb
from moe.storage.reading import read_items

Name = tuple[str, ...]


def name_of(path) -> Name:
  """The name of a JAX key path, through dicts, dataclasses, named tuples and lists."""
  keys = (getattr(key, 'key', getattr(key, 'name', getattr(key, 'idx', None))) for key in path)
  return tuple(map(str, keys))


def named(tree: Any) -> dict[Name, Any]:
  """The leaves of a tree by name."""
  return {name_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def stored(path: epath.Path, item: str) -> dict[Name, jax.ShapeDtypeStruct]:
  """Shapes and types of the arrays of an item of the step in `path`; nothing else is read.
  Raises what Orbax raises if they cannot be read.
  """
  leaves = named(_metadata(path, item))
  return {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in leaves.items()}


def read(path: epath.Path, item: str, where: Mapping[Name, Any]) -> dict[Name, jax.Array]:
  """Only the arrays that `where` names, in the type they are stored in.

  where: the sharding of each; this process reads the parts that its devices hold.
  Raises what Orbax raises if they cannot be read.
  """
  if not where:
    return {}
  tree = _only(where, _metadata(path, item))
  placed = jax.tree.map(
    lambda x: ocp.ArrayRestoreArgs(sharding=x.sharding, global_shape=x.shape), tree
  )
  args = ocp.args.PyTreeRestore(tree, restore_args=placed, partial_restore=True)
  gigabytes = under_way_gb(tree, jax.tree.map(lambda x: x.sharding, tree))
  return named(read_items(path, concurrent_gb=gigabytes, **{item: args})[item])


def _metadata(path, item):
  return ocp.PyTreeCheckpointHandler().metadata(path / item).tree


_UNREAD = object()


def _only(where, tree, name=()):
  """The metadata that `where` names. Orbax does not read what a dict lacks; lists stay whole."""
  if isinstance(tree, dict):
    kept = {key: _only(where, value, (*name, str(key))) for key, value in tree.items()}
    return {key: value for key, value in kept.items() if value is not _UNREAD} or _UNREAD
  if isinstance(tree, (list, tuple)):
    kept = [_only(where, value, (*name, str(place))) for place, value in enumerate(tree)]
    return [{} if value is _UNREAD else value for value in kept]
  if tree is None:  # a state without arrays, such as that of weight decay
    return None
  return (
    jax.ShapeDtypeStruct(tree.shape, tree.dtype, sharding=where[name]) if name in where else _UNREAD
  )
