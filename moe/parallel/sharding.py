"""What parameters declare, the ONE table from logical axes to mesh axes,
and how both together lay arrays out on the mesh.

`param` makes a parameter and declares the logical axis of each dimension; shardings, ZeRO's
gathers, weight decay and checkpoints read what it declares. `constrain` lays out an activation;
`per_shard` runs a function on every device's own shard.
On one device, where no mesh is in use, these two change nothing.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from flax import linen as nn
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from moe.errors import UserError
from moe.ops.quantized import Matrix, Quantized
from moe.parallel.mesh import AXES, BATCH_AXES, is_one_device, size, zero_stage

# Logical axis → mesh axes.
_MESH_AXES: dict[str | None, tuple[str, ...]] = {
  None: (),
  'batch': BATCH_AXES,
  'layers': ('stage',),
  'vocab': ('tensor',),
  'heads': ('tensor',),
  'hidden': ('tensor',),  # of FFNs and experts
  'experts': ('expert',),
  # d_model, which ZeRO spreads over these axes, except those that already split another dimension.
  'width': ('fsdp', 'expert'),
}

Path = tuple[str, ...]


@struct.dataclass
class Declared(nn.meta.AxisMetadata):
  """A parameter and what `param` declared of it. Flax's trees hold these boxes until `unboxed`."""

  value: Any
  # The logical axis of every dimension.
  axes: tuple[str | None, ...] = struct.field(pytree_node=False)
  decayed: bool = struct.field(pytree_node=False)  # by weight decay

  def unbox(self) -> Any:
    return self.value

  def replace_boxed(self, val: Any) -> 'Declared':
    return self.replace(value=val)

  def add_axis(self, index: int, params: dict) -> 'Declared':
    """Called by `nn.scan`, with metadata_params=STACKED."""
    return self.replace(axes=(*self.axes[:index], params['axis'], *self.axes[index:]))

  def remove_axis(self, index: int, params: dict) -> 'Declared':
    del params
    return self.replace(axes=(*self.axes[:index], *self.axes[index + 1 :]))


STACKED = {'axis': 'layers'}  # metadata_params of nn.scan over blocks


def param(
  module: nn.Module,
  name: str,
  shape: Sequence[int],
  axes: Sequence[str | None],
  init: nn.initializers.Initializer | None = None,
  decayed: bool = True,
) -> Matrix:
  """A float32 parameter of a module that has `config`, or its quantised form (`moe.quantize`).

  Args:
    axes: the logical axis of every dimension, as in the table above; None is never split.
    init: N(0, model.init_std²) (Section 4.1.3) unless given.
    decayed: whether weight decay acts on it.
  """
  if len(axes) != len(shape) or not set(axes) <= _MESH_AXES.keys():
    raise UserError(
      f'parameter {name!r} of shape {tuple(shape)} declares the axes {tuple(axes)}: one of '
      f'{", ".join(map(str, _MESH_AXES))} is needed for every dimension'
    )
  if module.has_variable('params', name):
    stored = module.get_variable('params', name)
    if isinstance(stored, Quantized):
      return stored
  init = init or nn.initializers.normal(stddev=module.config.model.init_std)
  return module.param(name, lambda key: Declared(init(key, tuple(shape)), tuple(axes), decayed))


def is_declared(x: Any) -> bool:
  return isinstance(x, Declared)


def unboxed(tree: Any) -> Any:
  """The parameters of a tree that a module's `init` returned.
  UserError for one that declares nothing.
  """

  def unbox(path, box):
    if not is_declared(box):
      raise UserError(
        f'parameter {"/".join(_names(path))} does not declare its axes: '
        'make it with moe.parallel.sharding.param'
      )
    return box.value

  return jax.tree_util.tree_map_with_path(unbox, tree, is_leaf=is_declared)


class Stored(NamedTuple):
  """How a parameter lies on the mesh."""

  axes: tuple[str | None, ...]
  split: tuple[tuple[str, ...], ...]  # the mesh axes that split each dimension

  @property
  def spec(self) -> PartitionSpec:
    return PartitionSpec(*(by or None for by in self.split))


def stored(axes: Sequence[str | None], shape: Sequence[int]) -> Stored:
  """How a parameter with these declared axes, those within its layer, lies on the mesh in use."""
  return resolve(axes, shape, {axis: size(axis) for axis in AXES}, zero_stage())


def specs(w: Matrix, stored: Stored) -> Any:
  """The PartitionSpec of a parameter; for a quantised one, that of each of its arrays."""
  if not isinstance(w, Quantized):
    return stored.spec
  *leading, rows, columns = stored.spec
  return Quantized(stored.spec, PartitionSpec(*leading, rows if w.is_packed else None, columns))


def resolve(
  axes: Sequence[str | None], shape: Sequence[int], sizes: Mapping[str, int], zero: int
) -> Stored:
  """How a parameter with these axes lies on a mesh of these sizes, at ZeRO's stage `zero`.

  Experts and layers are split if they can be dealt out evenly. If not (63 experts on 8 devices,
  27 layers on 4 stages), the same devices split their width instead (that of experts at stage 3
  only), and they are dealt out when they are used.
  """
  evenly = lambda axis, length: length % math.prod(sizes[name] for name in _MESH_AXES[axis]) == 0
  may_be_uneven = ('experts', 'layers')
  split = [
    () if axis == 'width' or (axis in may_be_uneven and not evenly(axis, length)) else by
    for axis, length, by in zip(axes, shape, (_MESH_AXES[axis] for axis in axes), strict=True)
  ]
  taken = {name for by in split for name in by}
  for dimension, axis in enumerate(axes):
    if axis != 'width':
      continue
    by = _MESH_AXES['width'] if zero == 3 else ()
    by = tuple(name for name in by if name not in taken)
    if 'layers' in axes and 'stage' not in taken:
      with_stage = (*by, 'stage')
      if shape[dimension] % math.prod(sizes[name] for name in with_stage) == 0:
        by = with_stage
    split[dimension] = by
  return Stored(tuple(axes), tuple(split))


def shardings(mesh: Mesh, tree: Any, declared: Any, zero: int) -> Any:
  """A NamedSharding for every leaf of a training state, or of its parameters.

  A leaf whose path ends like a parameter's, and which has its shape, lies as that parameter
  declares: Adam's moments, for example. All others (counters, a router's own state, factored
  moments) are replicated.

  Args:
    declared: the parameters' `Declared` boxes, holding their shapes.
    zero: mesh.zero. 3 spreads parameters and optimizer state over the devices that share a batch,
      1 only the latter.
  """
  boxes = {
    _names(path): box
    for path, box in jax.tree_util.tree_leaves_with_path(declared, is_leaf=is_declared)
  }

  def place(path, leaf):
    if isinstance(leaf, Quantized):
      where = resolve(boxes[_names(path)].axes, leaf.shape, mesh.shape, zero)
      return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs(leaf, where))
    names = _names(path)
    name = next((names[i:] for i in range(len(names)) if names[i:] in boxes), None)
    if name is None or boxes[name].value.shape != leaf.shape:
      return NamedSharding(mesh, PartitionSpec())
    is_parameter = names in (name, ('params', *name))
    stage = zero if is_parameter else 3
    return NamedSharding(mesh, resolve(boxes[name].axes, leaf.shape, mesh.shape, stage).spec)

  is_leaf = lambda leaf: isinstance(leaf, Quantized)
  return jax.tree_util.tree_map_with_path(place, tree, is_leaf=is_leaf)


def replicated(mesh: Mesh | None) -> NamedSharding | None:
  """The sharding of results that every process is to read: whole on every device.
  None on one device, where there is no choice.
  """
  return NamedSharding(mesh, PartitionSpec()) if mesh and mesh.size > 1 else None


def spec(*names: str | None) -> PartitionSpec:
  """The PartitionSpec of an activation with these logical axes."""
  return PartitionSpec(*(_MESH_AXES[name] or None for name in names))


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
  """x, laid out by its logical axes."""
  if is_one_device():
    return x
  return jax.lax.with_sharding_constraint(x, spec(*names))


def per_shard(function: Callable, in_specs: Any, out_specs: Any) -> Callable:
  """`function` on each device's own shard of its arguments;
  `function` itself where there is no mesh.

  Kernels and sorts know nothing of meshes: without this XLA would gather their operands. If a spec
  does not split an argument over some axis, its gradients are summed over that axis.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return function
  # Inside a pipeline the stages are split already.
  split = set(mesh.axis_names) - set(mesh.manual_axes)
  return jax.shard_map(
    function, axis_names=split, in_specs=in_specs, out_specs=out_specs, check_vma=False
  )


def shard_sizes(count: int, shards: int) -> list[int]:
  """How many of `count` things each of `shards` holds, in order:
  all equally many, but the last ones fewer, or none.
  """
  most = -(-count // shards)
  return [min(most, max(0, count - shard * most)) for shard in range(shards)]


def _names(path) -> Path:
  entries = (getattr(entry, 'key', getattr(entry, 'name', None)) for entry in path)
  return tuple(str(entry) for entry in entries if entry is not None)
