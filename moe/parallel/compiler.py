"""What XLA is asked for on a mesh, and what its compilers for some machines lack."""

import os

import jax
from jax.sharding import Mesh

_LEVEL = 'xla_backend_optimization_level'


def compiler_options(mesh: Mesh) -> dict[str, bool | int]:
  """XLA's options for a training step on a mesh: on TPU tokens travel while others compute only
  where this is asked for; on CPU more than level 1 takes longer to compile and no less to run.
  """
  device = mesh.devices.flat[0]
  if device.platform == 'cpu' and _LEVEL not in os.environ.get('XLA_FLAGS', ''):
    return {_LEVEL: 1}
  if device.platform != 'tpu' or not _exchanges(device.device_kind, mesh.size):
    return {}
  return {'xla_tpu_enable_async_all_to_all': True, 'xla_tpu_enable_async_ragged_all_to_all': True}


def has_ragged_exchange() -> bool:
  """Whether XLA can compile `lax.ragged_all_to_all` for the mesh that is in use,
  if it is one of TPUs.
  """
  mesh = jax.sharding.get_abstract_mesh()
  return _exchanges(getattr(mesh.abstract_device, 'device_kind', ''), mesh.size)


def _exchanges(device_kind, devices):
  """v5e slices route around missing links from 4x8 on;
  there its compiler has neither a ragged nor an asynchronous one.

  Tried for 2x4 to 16x16 of v5e and v6e, 2x2x2 to 8x8x8 of v5p.
  """
  return device_kind != 'TPU v5 lite' or devices <= 16
