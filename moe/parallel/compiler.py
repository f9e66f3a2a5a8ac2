"""XLA's options for a mesh, and what its compilers lack on some machines."""

import os

import jax
from jax.sharding import Mesh

_LEVEL = 'xla_backend_optimization_level'


def compiler_options(mesh: Mesh) -> dict[str, bool | int]:
  """XLA's options for a training step on a mesh. TPUs exchange some tokens while they compute
  others only if asked to. On CPU, levels above 1 take longer to compile and run no faster.
  """
  device = mesh.devices.flat[0]
  if device.platform == 'cpu' and _LEVEL not in os.environ.get('XLA_FLAGS', ''):
    return {_LEVEL: 1}
  if device.platform != 'tpu' or not _exchanges(device.device_kind, mesh.size):
    return {}
  return {'xla_tpu_enable_async_all_to_all': True, 'xla_tpu_enable_async_ragged_all_to_all': True}


def has_ragged_exchange() -> bool:
  """Whether XLA can compile `lax.ragged_all_to_all` for the mesh in use, if that is a TPU slice."""
  mesh = jax.sharding.get_abstract_mesh()
  return _exchanges(getattr(mesh.abstract_device, 'device_kind', ''), mesh.size)


def _exchanges(device_kind, devices):
  """Whether XLA has ragged and asynchronous all-to-alls for these devices. It lacks both for v5e
  slices of 4x8 or more, which route around missing links.

  Tried for 2x4 to 16x16 of v5e and v6e, 2x2x2 to 8x8x8 of v5p.
  """
  return device_kind != 'TPU v5 lite' or devices <= 16
