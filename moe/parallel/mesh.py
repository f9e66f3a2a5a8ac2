"""The device mesh: its axes, how it is made from a config,
and the context in which a program is laid out on it.

Layers find the mesh in JAX's context (`use`), so none takes it as an argument.
Without a mesh there is one device.
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

# Outermost first: the last axes communicate most, and have neighbours on the machine.
AXES = ('stage', 'data', 'fsdp', 'expert', 'tensor')
BATCH_AXES = ('data', 'fsdp', 'expert')  # attention, embedding and loss treat all three as data

# ZeRO's stage (mesh.zero) on the mesh in use. A JAX context, as it is then part of jit's cache key,
# like the mesh: a function compiled for one stage is never reused for the other.
_ZERO_STAGE = jax.make_user_context(3)


def make_mesh(config: Config, devices: Sequence[jax.Device] | None = None) -> Mesh:
  """The mesh of config.mesh over `devices` (default: all), with −1 filled in.
  UserError if it does not fit the devices, or an axis does not divide what it splits.
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
  """Programs traced inside are laid out on `mesh`, at ZeRO's stage `zero` (mesh.zero).
  A mesh of a single device changes nothing.
  """
  if mesh.size == 1:
    yield
    return
  with jax.set_mesh(mesh), _ZERO_STAGE(zero):
    yield


def zero_stage() -> int:
  """ZeRO's stage on the mesh in use: 3 if the devices that share a batch split the parameters,
  1 if each has them whole.
  """
  return _ZERO_STAGE.value


def size(axis: str) -> int:
  """Devices along an axis of the mesh in use; 1 without a mesh."""
  mesh = jax.sharding.get_abstract_mesh()
  return 1 if mesh.empty else mesh.shape[axis]


def is_one_device() -> bool:
  """Whether what is traced runs on a single device, without a mesh."""
  return jax.sharding.get_abstract_mesh().empty


def _check(config: Config, sizes: dict[str, int]) -> None:
  """Raises UserError, naming both keys, if an axis does not divide what it splits."""
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
