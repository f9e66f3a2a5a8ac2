"""The device mesh: its axes, how it is made of a config,
and the context in which a program is laid out on it.

Layers find the mesh in JAX's context (`use`), so that none is handed one;
without a mesh there is one device.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from moe.config import MESH_AXES, Config, MeshConfig
from moe.errors import UserError

# Outermost first: neighbours in the last axes are neighbours on the machine, and talk most.
AXES = ('stage', 'data', 'fsdp', 'expert', 'tensor')
BATCH_AXES = ('data', 'fsdp', 'expert')  # attention, embedding and loss treat all three as data

# ZeRO's stage (mesh.zero) of the mesh in use. A context of JAX's own: it is part of jit's cache
# key, as the mesh is, so that no function compiled for one stage is ever taken for the other.
_ZERO_STAGE = jax.make_user_context(3)


def make_mesh(config: Config, devices: Sequence[jax.Device] | None = None) -> Mesh:
  """The mesh of config.mesh over `devices` (all there are), −1 filled in.
  UserError where something does not divide.
  """
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
  """What is traced inside is laid out on `mesh`, by stage `zero` (mesh.zero).
  A single device changes nothing.
  """
  if mesh.size == 1:
    yield
    return
  with jax.set_mesh(mesh), _ZERO_STAGE(zero):
    yield


def zero_stage() -> int:
  """Of the mesh in use: 3 where parameters lie over the devices that share a batch,
  1 where each has them whole.
  """
  return _ZERO_STAGE.value


def size(axis: str) -> int:
  """Devices along a mesh axis, in the mesh that is in use; 1 without one."""
  mesh = jax.sharding.get_abstract_mesh()
  return 1 if mesh.empty else mesh.shape[axis]


def is_one_device() -> bool:
  """Whether what is traced runs on a single device, without a mesh."""
  return jax.sharding.get_abstract_mesh().empty


def _check(config: Config, sizes: dict[str, int]) -> None:
  """UserError naming both keys where an axis does not divide what it splits."""
  model, moe, data = config.model, config.moe, config.data

  def divides(axes, key, value):
    by = math.prod(sizes[axis] for axis in axes)
    if value % by:
      listed = ' × '.join(f'mesh.{axis}={sizes[axis]}' for axis in axes if sizes[axis] > 1)
      raise UserError(f'{listed} does not divide {key}={value}')

  layers = model.num_moe_layers or model.num_layers
  if sizes['stage'] > layers:
    raise UserError(
      f'mesh.stage={sizes["stage"]} is more than the {layers} layers '
      'that are dealt out to the stages'
    )
  rows = data.batch_size // config.train.microbatches
  divides(BATCH_AXES, 'data.batch_size / train.microbatches', rows)
  divides(('fsdp', 'expert'), 'model.d_model', model.d_model)
  divides(('tensor',), 'model.num_heads', model.num_heads)
  divides(('tensor',), 'model.num_kv_heads', model.num_kv_heads)
  divides(('tensor',), 'model.vocab_size', model.vocab_size)
  divides(('tensor',), 'model.d_ff', model.d_ff)
  divides(('tensor',), 'moe.d_expert', moe.d_expert)
