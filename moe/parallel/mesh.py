"""The device mesh, the ONE table from logical axes to mesh axes, and the two ways in which layers use it.

`constrain` says how an activation lies; `on_shards` runs a function on every device's own part. Both find the mesh in
JAX's context (`use`), so that no layer is handed one, and both do nothing where there is none: one device.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from moe.config import MESH_AXES, Config, MeshConfig
from moe.errors import UserError

# Outermost first: neighbours in the last axes are neighbours on the machine, and talk most.
AXES = ('stage', 'data', 'fsdp', 'expert', 'tensor')
BATCH_AXES = ('data', 'fsdp', 'expert')  # attention, embedding and loss treat all three as data

# Logical axis → mesh axes.
_TABLE: dict[str | None, tuple[str, ...]] = {
  None: (),
  'batch': BATCH_AXES,
  'layers': ('stage',),
  'vocab': ('tensor',),
  'heads': ('tensor',),
  'hidden': ('tensor',),  # of FFNs and experts
  'experts': ('expert',),
  'width': (
    'fsdp',
    'expert',
  ),  # d_model of what every token uses: ZeRO-3 over all that holds other tokens
  'expert_width': (
    'fsdp',
  ),  # d_model of experts, whose first axis has the mesh's expert axis already
}
ZERO_AXES = ('width', 'expert_width')

# ZeRO's stage (mesh.zero) of the mesh in use. A context of JAX's own: it is part of jit's cache key, as the mesh is, so
# that no function compiled for one stage is ever taken for the other.
_ZERO_STAGE = jax.make_user_context(3)

# Parameter → logical axes, by its module and name; a stack of blocks has 'layers' before them.
_PARAMETERS: dict[tuple[str, str], tuple[str | None, ...]] = {
  ('', 'embedding'): ('vocab', 'width'),
  ('', 'head'): ('width', 'vocab'),
  ('attention', 'query'): ('width', 'heads'),
  ('attention', 'key'): ('width', 'heads'),
  ('attention', 'value'): ('width', 'heads'),
  ('attention', 'out'): ('heads', 'width'),
  ('mlp', 'gate'): ('width', 'hidden'),
  ('mlp', 'up'): ('width', 'hidden'),
  ('mlp', 'down'): ('hidden', 'width'),
  ('shared', 'gate'): ('width', 'hidden'),
  ('shared', 'up'): ('width', 'hidden'),
  ('shared', 'down'): ('hidden', 'width'),
  ('router', 'experts'): ('width', None),
}
_STACKS = ('dense_blocks', 'moe_blocks')


def make_mesh(config: Config, devices: Sequence[jax.Device] | None = None) -> Mesh:
  """The mesh of config.mesh over `devices` (all there are), −1 filled in. UserError where something does not divide."""
  devices = jax.devices() if devices is None else devices
  sizes = fill(config.mesh, len(devices))
  _check(config, sizes)
  shape = tuple(sizes[axis] for axis in AXES)
  if devices[0].platform == 'tpu':
    grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
  else:
    grid = np.array(devices).reshape(shape)
  return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def fill(config: MeshConfig, num_devices: int) -> dict[str, int]:
  """Axis → size, with −1 filled in. UserError unless the product is `num_devices`."""
  sizes = {axis: getattr(config, axis) for axis in AXES}
  given = math.prod(size for size in sizes.values() if size > 0)
  open_axes = [axis for axis, size in sizes.items() if size == -1]
  listed = ' × '.join(f'mesh.{axis}={sizes[axis]}' for axis in MESH_AXES)
  if open_axes and num_devices % given == 0:
    sizes[open_axes[0]] = num_devices // given
  elif open_axes or given != num_devices:
    raise UserError(f'{listed} does not fit {num_devices} device{"s" * (num_devices != 1)}')
  return sizes


@contextlib.contextmanager
def use(mesh: Mesh, zero: int) -> Iterator[None]:
  """What is traced inside is laid out on `mesh`, by stage `zero` (mesh.zero). A single device changes nothing."""
  if mesh.size == 1:
    yield
    return
  with jax.set_mesh(mesh), _ZERO_STAGE(zero):
    yield


def zero_stage() -> int:
  """Of the mesh in use: 3 where parameters lie over the devices that share a batch, 1 where each has them whole."""
  return _ZERO_STAGE.value


def size(axis: str) -> int:
  """Devices along a mesh axis, in the mesh that is in use; 1 without one."""
  mesh = jax.sharding.get_abstract_mesh()
  return 1 if mesh.empty else mesh.shape[axis]


def spec(*names: str | None) -> PartitionSpec:
  """The PartitionSpec of an array with these logical axes."""
  return PartitionSpec(*(_TABLE[name] or None for name in names))


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
  """x, laid out by its logical axes."""
  if jax.sharding.get_abstract_mesh().empty:
    return x
  return jax.lax.with_sharding_constraint(x, spec(*names))


def on_shards(function: Callable, in_specs: Any, out_specs: Any) -> Callable:
  """`function` on each device's own part of its arguments; `function` itself where there is no mesh.

  Kernels and sorts know nothing of meshes: without this XLA would gather their operands. An argument that a spec does
  not split over some axis gets the sum of that axis's gradients.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return function
  split = set(mesh.axis_names) - set(
    mesh.manual_axes
  )  # inside a pipeline the stages are split already
  return jax.shard_map(
    function, axis_names=split, in_specs=in_specs, out_specs=out_specs, check_vma=False
  )


def expert_axes(
  num_experts: int, devices: int
) -> tuple[tuple[str | None, ...], tuple[str | None, ...]]:
  """Logical axes of experts' (gate and up, down), stored on `devices` along the expert axis.

  Where they cannot be dealt out evenly, 63 to 8, say, they are stored by width, and dealt out when they are used.
  """
  experts, width = ('experts', 'expert_width') if num_experts % devices == 0 else (None, 'width')
  return (experts, width, 'hidden'), (experts, 'hidden', width)


def gathers(axes: Sequence[str | None]) -> list[tuple[int, str]]:
  """(dimension, mesh axis) of every gather that makes a parameter whole that ZeRO-3 spreads over the mesh in use.

  One a mesh axis, the minor first: of one over a whole 3D torus TPU's compiler makes an all-reduce, of twice the bytes.
  """
  if zero_stage() == 1:
    return []
  over = lambda axis: (
    [name for name in reversed(_TABLE[axis]) if size(name) > 1] if axis in ZERO_AXES else []
  )
  return [(dimension, name) for dimension, axis in enumerate(axes) for name in over(axis)]


def own_whole(w: jax.Array, axes: Sequence[str | None], dtype: Any) -> jax.Array:
  """Inside `on_shards`: a parameter, whole along the axes over which ZeRO-3 spreads it. For types see `travels`."""
  steps = gathers(axes)

  def gather(w):
    for dimension, name in steps:
      w = jax.lax.all_gather(w, name, axis=dimension, tiled=True)
    return w

  return travels(gather, w, dtype) if steps else w


def travels(move: Callable, w: jax.Array, dtype: Any) -> jax.Array:
  """move(w), a linear function of collectives, for a parameter that is used in `dtype`, which may be narrower.

  It travels rounded, as products would round it anyway. Its gradient takes the transposed way in w's own type:
  gathers become reduce-scatters, so that a sum of many devices' gradients is exact, and stays where w is stored.
  """
  stored = jax.ShapeDtypeStruct(w.shape, w.dtype)

  @jax.custom_vjp
  def moved(w):
    return move(w.astype(dtype)).astype(stored.dtype)

  moved.defvjp(lambda w: (moved(w), None), lambda _, d: jax.linear_transpose(move, stored)(d))
  return moved(w)


def stored_spec(axes: Sequence[str | None]) -> PartitionSpec:
  """How a parameter of these logical axes is stored on the mesh in use, if no stack of layers splits it too."""
  return spec(*_stored_axes(axes, zero_stage()))


def parameter_axes(module: str, name: str) -> tuple[str | None, ...]:
  """Logical axes of a parameter, by its module's name and its own; '' for the model's."""
  return _PARAMETERS[module, name]


def shardings(mesh: Mesh, tree: Any, zero: int = 3) -> Any:
  """A NamedSharding for every leaf of a tree of parameters, or of one that repeats their names, as optimizer state.

  zero: 3 shards parameters and optimizer state over the data axes; 1 only the latter, as told by the path 'params'.
  """
  place = lambda path, leaf: NamedSharding(mesh, _leaf_spec(path, leaf, zero, mesh.shape))
  return jax.tree_util.tree_map_with_path(place, tree)


def whole(mesh: Mesh | None) -> NamedSharding | None:
  """Of results that every process is to read: on every device. None on one device, where there is no choice."""
  return NamedSharding(mesh, PartitionSpec()) if mesh and mesh.size > 1 else None


def batch_parts(sizes: Mapping[str, int] | None = None) -> int:
  """Parts that a batch is in, on a mesh of these sizes by axis; without them, on the mesh that is in use."""
  return math.prod(size(axis) if sizes is None else sizes[axis] for axis in BATCH_AXES)


def dealt_out(count: int, parts: int) -> list[int]:
  """How many of `count` things each of `parts` holds, in order: as many as fit evenly, the last ones fewer, or none."""
  most = -(-count // parts)
  return [min(most, max(0, count - part * most)) for part in range(parts)]


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Of arrays whose first axis is that of a batch's sequences."""
  return NamedSharding(mesh, spec('batch'))


def place(batch: Any, mesh: Mesh) -> Any:
  """This process's part of a batch (see `batch_share`) as arrays of the whole, spread over the mesh."""
  if mesh.size == 1:
    return batch
  sharding, (_, count) = batch_sharding(mesh), batch_share(mesh)
  return jax.tree.map(
    lambda x: jax.make_array_from_process_local_data(
      sharding, x, (x.shape[0] * count, *x.shape[1:])
    ),
    batch,
  )


def place_whole(batch: Any, mesh: Mesh) -> Any:
  """A batch that every process has whole, spread over the mesh; rows of zeros fill it up to equal parts."""
  if mesh.size == 1:
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

  The rows of a part need not follow each other: on a TPU slice the mesh runs through the hosts' blocks of chips, each
  of which has rows from here and there. Where two processes have some rows in common and others not, or some have more
  than others, all of them feed the whole batch, and each device takes its own of it.
  """
  parts = sorted({tuple(sorted(rows)) for rows in held.values()})
  every_row = set().union(*parts)
  if len({len(part) for part in parts}) > 1 or sum(map(len, parts)) > len(every_row):
    return 0, 1
  return parts.index(tuple(sorted(held[process]))), len(parts)


def _stored_axes(axes, zero):
  return tuple(None if zero == 1 and axis in ZERO_AXES else axis for axis in axes)


def _leaf_spec(path, leaf, zero, sizes):
  names = [str(getattr(entry, 'key', getattr(entry, 'name', ''))) for entry in path]
  stacked = any(name in _STACKS for name in names)
  module = names[-2] if stacked else ''
  axes = _PARAMETERS.get((module, names[-1])) if names else None
  if module == 'experts':
    axes = expert_axes(leaf.shape[1], sizes['expert'])[names[-1] == 'down']
  elif axes is None:  # norm scales, counters
    axes = (None,) * (leaf.ndim - stacked)
  stored = _stored_axes(axes, zero) if names and names[0] == 'params' else axes
  if not stacked:
    return spec(*stored)
  if leaf.shape[0] % sizes['stage'] == 0:
    return spec('layers', *stored)
  # The table's one exception: layers that the stages do not divide lie on them by width. The pipeline deals them out.
  parts = [_TABLE[axis] for axis in stored]
  for dimension, axis in enumerate(axes):
    by = (*parts[dimension], 'stage')
    if axis in ZERO_AXES and leaf.shape[1 + dimension] % math.prod(sizes[name] for name in by) == 0:
      parts[dimension] = by
  return PartitionSpec(None, *(part or None for part in parts))


def _check(config: Config, sizes: dict[str, int]) -> None:
  """UserError naming both keys where an axis does not divide what it splits."""
  model, moe, data = config.model, config.moe, config.data

  def divides(axes, key, value):
    by = math.prod(sizes[axis] for axis in axes)
    if value % by:
      listed = ' × '.join(f'mesh.{axis}={sizes[axis]}' for axis in axes if sizes[axis] > 1)
      raise UserError(f'{listed} does not divide {key}={value}')

  layers = model.num_layers - model.num_dense_layers or model.num_layers
  if sizes['stage'] > layers:
    raise UserError(
      f'mesh.stage={sizes["stage"]} is more than the {layers} layers that are dealt out to the stages'
    )
  rows = data.batch_size // config.train.microbatches
  divides(BATCH_AXES, 'data.batch_size / train.microbatches', rows)
  divides(('fsdp', 'expert'), 'model.d_model', model.d_model)
  divides(('tensor',), 'model.num_heads', model.num_heads)
  divides(('tensor',), 'model.num_kv_heads', model.num_kv_heads)
  divides(('tensor',), 'model.vocab_size', model.vocab_size)
  divides(('tensor',), 'model.d_ff', model.d_ff)
  divides(('tensor',), 'moe.d_expert', moe.d_expert)


def compiler_options(mesh: Mesh) -> dict[str, bool]:
  """XLA's options for a program on a mesh: on TPU tokens travel while others compute only where this is asked for."""
  device = mesh.devices.flat[0]
  if device.platform != 'tpu' or not _exchanges(device.device_kind, mesh.size):
    return {}
  return {'xla_tpu_enable_async_all_to_all': True, 'xla_tpu_enable_async_ragged_all_to_all': True}


def has_ragged_exchange() -> bool:
  """Whether XLA can compile `lax.ragged_all_to_all` for the mesh that is in use, if it is one of TPUs."""
  mesh = jax.sharding.get_abstract_mesh()
  return _exchanges(getattr(mesh.abstract_device, 'device_kind', ''), mesh.size)


def _exchanges(device_kind, devices):
  """v5e slices route around missing links from 4x8 on; there its compiler has neither a ragged nor an asynchronous one.

  Tried for 2x4 to 16x16 of v5e and v6e, 2x2x2 to 8x8x8 of v5p.
  """
  return device_kind != 'TPU v5 lite' or devices <= 16
