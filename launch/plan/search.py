"""Which meshes and rematerialisation could do, and in which order they are worth compiling."""

import dataclasses
import math
from collections.abc import Iterator, Sequence

import jax

from launch.plan.machine import Machine
from moe import mesh as mesh_lib
from moe.accounting import account
from moe.config import Config
from moe.errors import UserError

_REMAT = ('none', 'dots', 'moe', 'full')
_BYTES_A_PARAMETER = 16  # parameter, two moments, gradient, all float32


def candidates(config: Config, machine: Machine, devices: Sequence[jax.Device]) -> Iterator[Config]:
  """Variations of config.mesh and model.remat whose state alone leaves room on the machine, widest sharding last."""
  for expert, tensor, data in _layouts(config, machine.num_devices):
    fsdp = machine.num_devices // (expert * tensor * data)
    mesh = dataclasses.replace(config.mesh, data=data, fsdp=fsdp, expert=expert, tensor=tensor, stage=1)
    if _state_bytes(config, mesh) > machine.chip.capacity:
      continue
    for remat in _REMAT if config.moe.num_experts else ('none', 'dots', 'full'):
      changed = dataclasses.replace(config, mesh=mesh, model=dataclasses.replace(config.model, remat=remat))
      try:
        mesh_lib.make_mesh(changed, devices)
      except UserError:
        continue
      yield changed


def rank(records: list[dict]) -> list[dict]:
  """Those that fit first, the fastest first; then those that do not, by how much."""
  speed = lambda r: (not r['fits'], r.get('step_seconds_without_overlap', math.inf), r['over_bytes_per_device'])
  return sorted(records, key=speed)


def _layouts(config, devices):
  experts = [1] if not config.moe.num_experts else _divisors(devices, min(devices, config.moe.num_experts + 1))
  for expert in experts:
    for tensor in _divisors(devices // expert, 4):
      for data in _divisors(devices // expert // tensor, devices):
        if data == 1 or data == devices // expert // tensor:
          yield expert, tensor, data


def _divisors(number, most):
  return [n for n in range(1, most + 1) if number % n == 0]


def _state_bytes(config, mesh) -> float:
  return _BYTES_A_PARAMETER * account(config).total_params / (mesh.fsdp * mesh.expert * mesh.tensor)
