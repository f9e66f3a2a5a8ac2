"""A machine by its name, 'v5p:4x4x4' or 'h100:8',
as devices that programs can be compiled for without having them.
"""

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Sequence
from typing import NamedTuple

import jax
from jax.experimental import topologies

from moe.chips import CHIPS, Chip
from moe.errors import UserError
from moe.planner.kernels import gpu, gpu_targets, tpu

EXAMPLES = 'v5e:2x4, v5p:4x4x4, v6e:4x4, h100:8, a100-40:1'

# Sides of a slice of so many chips of a 2D torus, as clouds sell them.
_SQUAREST = {1: (1, 1), 4: (2, 2), 8: (2, 4), 16: (4, 4)}


class Machine(NamedTuple):
  """A slice of TPU chips, or the GPUs of one or more servers. One device a chip."""

  topology: str
  chip: Chip
  sides: tuple[int, ...]  # of the torus; of GPUs their number

  @property
  def num_devices(self) -> int:
    return math.prod(self.sides)


def parse(topology: str) -> Machine:
  """UserError that says what is wrong with the name."""
  match = re.fullmatch(r'([\w-]+):(\d+(?:x\d+)*)', topology or '')
  if not match:
    raise UserError(f'--topology={topology} is not CHIP:SIZE, as {EXAMPLES}')
  name, sides = match[1], tuple(int(side) for side in match[2].split('x'))
  if name not in CHIPS:
    raise UserError(f'--topology={topology}: {name!r} is none of {", ".join(CHIPS)}')
  chip = CHIPS[name]
  if chip.torus == 2 and len(sides) == 1 and sides[0] in _SQUAREST:
    sides = _SQUAREST[sides[0]]
    topology = f'{name}:{sides[0]}x{sides[1]}'
  if len(sides) != max(chip.torus, 1):
    wanted = (
      f'{chip.torus} sides, as {next(e for e in EXAMPLES.split(", ") if e[:3] == name)}'
      if chip.torus
      else 'a number'
    )
    raise UserError(f'--topology={topology}: {name} takes {wanted}')
  if 0 in sides:
    raise UserError(f'--topology={topology} has no devices')
  if chip.server and sides[0] > chip.server and sides[0] % chip.server:
    servers = (
      f'{name} comes in servers of {chip.server}: up to {chip.server} devices, or a multiple'
    )
    raise UserError(f'--topology={topology}: {servers}')
  return Machine(topology, chip, sides)


def with_memory(machine: Machine, fraction: float) -> Machine:
  """Of whose GPUs JAX is given that part of the memory. UserError for TPUs, which give all."""
  chip = machine.chip
  if not 0 < fraction <= 1 or not chip.memory:
    what = 'must be above 0 and at most 1' if chip.memory else f'goes with GPUs, not {chip.name}'
    raise UserError(f'--memory_fraction={fraction} {what}')
  return machine._replace(chip=dataclasses.replace(chip, capacity=int(fraction * chip.memory)))


def devices(machine: Machine) -> Sequence[jax.Device]:
  """Loads the compiler, at the first call. UserError where it is not
  installed or knows no such slice.
  """
  module, environment = (tpu, '.venv-tpu') if machine.chip.platform == 'tpu' else (gpu, '.venv-gpu')
  if not importlib.util.find_spec(module.COMPILER):
    raise UserError(
      f'planning for {machine.chip.name} needs the package {module.COMPILER}: '
      f'make setup-aot, then {environment}/bin/python -m launch.plan'
    )
  try:
    if machine.chip.platform == 'gpu':
      of_a_server = min(machine.num_devices, machine.chip.server)
      os.environ.setdefault('JAX_SKIP_CUDA_CONSTRAINTS_CHECK', '1')
      return topologies.get_topology_desc(
        platform='cuda',
        topology_name=machine.chip.name,
        target_config=gpu_targets.TARGETS[machine.chip.name].description,
        topology=f'1x{machine.num_devices // of_a_server}x{of_a_server}',
      ).devices
    for name, value in tpu.ENVIRONMENT.items():
      os.environ.setdefault(name, value)
    # A host has four chips of most slices.
    alone = {'chips_per_host_bounds': (1, 1, 1)} if machine.num_devices == 1 else {}
    return topologies.get_topology_desc(
      platform='tpu', topology_name=machine.topology, **alone
    ).devices
  except Exception as error:  # the compiler's own words, whatever type they come in
    raise UserError(
      f'--topology={machine.topology} is none that the compiler knows: {error}'
    ) from error


def compiler_options(machine: Machine) -> dict[str, str]:
  """What the compiler has to be told beside the program."""
  return {'xla_gpu_cuda_data_dir': str(gpu.toolkit())} if machine.chip.platform == 'gpu' else {}
