"""A machine by its name, 'v5p:4x4x4' or 'h100:8', as devices that programs can be compiled for
although they are not here.
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

# Number of chips → sides of a slice of a 2D torus, as clouds sell them.
_SQUAREST = {1: (1, 1), 4: (2, 2), 8: (2, 4), 16: (4, 4)}


class Machine(NamedTuple):
  """A slice of TPU chips, or the GPUs of one or more servers. A chip is one device."""

  topology: str
  chip: Chip
  sides: tuple[int, ...]  # of the torus; for GPUs (number,)

  @property
  def num_devices(self) -> int:
    return math.prod(self.sides)


def parse(topology: str) -> Machine:
  """The machine of that name. UserError, which says what is wrong with it, for any other name."""
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
  """The machine if JAX may use that fraction of each GPU's memory. UserError for TPUs, whose
  programs may use all of it, and unless the fraction is above 0 and at most 1.
  """
  chip = machine.chip
  if not 0 < fraction <= 1 or not chip.memory:
    what = 'must be above 0 and at most 1' if chip.memory else f'goes with GPUs, not {chip.name}'
    raise UserError(f'--memory_fraction={fraction} {what}')
  return machine._replace(chip=dataclasses.replace(chip, capacity=int(fraction * chip.memory)))


def devices(machine: Machine) -> Sequence[jax.Device]:
  """The machine's devices. The first call loads the compiler. UserError if it is not installed or
  does not know the slice.
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
    # The compiler assumes four chips per host, as most slices have; a single chip needs another.
    alone = {'chips_per_host_bounds': (1, 1, 1)} if machine.num_devices == 1 else {}
    return topologies.get_topology_desc(
      platform='tpu', topology_name=machine.topology, **alone
    ).devices
  except Exception as error:  # the compiler's own words, whatever type they come in
    raise UserError(f'--topology={machine.topology} is unknown to the compiler: {error}') from error


def compiler_options(machine: Machine) -> dict[str, str]:
  """Options that the compiler needs for this machine."""
  return {'xla_gpu_cuda_data_dir': str(gpu.toolkit())} if machine.chip.platform == 'gpu' else {}
