"""A plan: what the compiled step needs against what the machine has, as JSON-able values."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from moe.accounting import account
from moe.config import Config
from moe.parallel.experts.capacity import expected_fill
from moe.parallel.feeding import batch_parts
from moe.planner import flops as flops_lib
from moe.planner import stages
from moe.planner.collectives import Collective
from moe.planner.collectives import collectives as find_collectives
from moe.planner.compile_step import compile_step
from moe.planner.compiling import Compiled
from moe.planner.hlo import unread_loops
from moe.planner.machine import Machine
from moe.planner.roofline import by_kind_and_axes, roofline
from moe.planner.traffic import memory_traffic


def plan(config: Config, machine: Machine) -> dict[str, Any]:
  """Compiles the training step and describes it. UserError if config and machine do not match."""
  return describe(config, machine, compile_step(config, machine))


def describe(config: Config, machine: Machine, compiled: Compiled) -> dict[str, Any]:
  """The plan of a compiled step. It lacks collectives, traffic and time if the compiler refused the
  step for its size.
  """
  chip, devices = machine.chip, machine.num_devices
  fits = not compiled.refusal and compiled.reserved_bytes <= chip.capacity
  rows = _rows_a_device(config, compiled.mesh)
  setting = flops_lib.Setting(rows, config.data.seq_len, config.model.head_dim)
  flops = flops_lib.count(compiled.jaxpr, setting)
  own = account(config).train_flops_per_sequence * config.data.batch_size
  record = {
    'config': config.name,
    'topology': machine.topology,
    'devices': devices,
    'mesh': {axis: size for axis, size in compiled.mesh.items() if size > 1},
    'remat': config.model.remat,
    'microbatches': config.train.microbatches,
    'batch_size': config.data.batch_size,
    'seq_len': config.data.seq_len,
    'fits': fits,
    'peak_bytes_per_device': compiled.peak_bytes,
    'reserved_bytes_per_device': compiled.reserved_bytes,
    'capacity_bytes_per_device': chip.capacity,
    'over_bytes_per_device': max(0, compiled.reserved_bytes - chip.capacity),
    'memory': _memory(config, compiled),
    'flops_per_step': {
      **{field.name: round(getattr(flops, field.name)) for field in dataclasses.fields(flops)},
      'executed': round(flops.executed),
      'accounting': own,
      'model_over_accounting': round(flops.model / own, 5),
    },
    'compile_seconds': round(compiled.seconds, 1),
    'compile_cpu_seconds': round(compiled.cpu_seconds, 1),
    'compile_resident_bytes': compiled.resident_bytes,
  }
  if compiled.refusal:
    return record | {'refusal': compiled.refusal}
  return record | _performance(config, machine, compiled, flops, own)


def _performance(config, machine, compiled, flops, own) -> dict[str, Any]:
  chip, devices = machine.chip, machine.num_devices
  collectives = find_collectives(compiled.text, compiled.mesh, _ragged_share(config, compiled.mesh))
  traffic, stretch = memory_traffic(compiled.text), stages.stretch(config, compiled.mesh['stage'])
  times = roofline(
    chip,
    machine.sides,
    compiled.coordinates,
    stretch * flops.executed / devices,
    traffic.once + stretch * traffic.in_loops,
    _stretched(collectives, stretch),
    compiled.mesh,
  )
  seconds, tokens = times.step, config.data.batch_size * config.data.seq_len
  return {
    'collective_bytes_per_device': by_kind_and_axes(collectives),
    'hbm_bytes_per_device': round(sum(traffic)),
    'loops_counted_once': unread_loops(compiled.text),
    'stage_stretch': round(stretch, 4),
    'roofline_seconds': {term: round(value, 4) for term, value in times._asdict().items()},
    'step_seconds': round(seconds, 4),
    'step_seconds_without_overlap': round(sum(times), 4),
    'binds': times.binds,
    'tokens_per_second': round(tokens / seconds),
    'mfu': round(own / (seconds * devices * chip.flops), 4),
    'mfu_without_overlap': round(own / (sum(times) * devices * chip.flops), 4),
  }


def _stretched(collectives: Sequence[Collective], stretch: float) -> list[Collective]:
  """The collectives with a stage's waiting counted as more runs of them. Those between stages are
  unchanged: they run in every tick, whether a stage works or waits.
  """
  return [
    c if 'stage' in c.axes else dataclasses.replace(c, times=c.times * stretch) for c in collectives
  ]


def _memory(config: Config, compiled: Compiled) -> dict[str, int]:
  """The parts of the peak memory. Gradients are one set, plus their running sum with microbatches;
  activations are what is left.
  """
  state = compiled.held
  gradients = state['parameters'] * (1 + (config.train.microbatches > 1))
  named = state | {'gradients': gradients}
  return named | {'activations': compiled.peak_bytes - sum(named.values())}


def _ragged_share(config: Config, mesh: dict[str, int]) -> float:
  """The share of a ragged exchange's buffer that is sent when routing is balanced: only rows that
  exist are sent.
  """
  moe, tokens = config.moe, _tokens_a_device(config, mesh)
  if not moe.num_experts:
    return 1.0  # a dense model exchanges nothing
  return expected_fill(
    tokens,
    moe.units_of_experts,
    moe.experts_per_token,
    mesh['expert'],
    config.mesh.receive_buffer,
  )


def _rows_a_device(config: Config, mesh: dict[str, int]) -> float:
  """Assignments of one microbatch that a device's experts compute when routing is balanced."""
  return _tokens_a_device(config, mesh) * config.moe.experts_per_token * config.moe.mean_units


def _tokens_a_device(config: Config, mesh: dict[str, int]) -> int:
  """A device's tokens of one microbatch. `moe.parallel.mesh` has checked that all devices have as
  many.
  """
  sequences = config.data.batch_size // config.train.microbatches
  return sequences // batch_parts(mesh) * config.data.seq_len
