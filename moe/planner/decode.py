"""A plan of decoding: whether it fits, and what one step, a token of every row, needs. JSON-able.

Most of the work is reading weights and cache. So a plan sets the bytes that the compiled program
reads beside the least possible: every weight that some row needs once, and the whole cache once.
Routing is balanced: B rows that choose K of E experts each need E (1 − (1 − K/E)ᴮ) experts.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from moe.accounting import account, count_params
from moe.config import FEW_BITS, Config
from moe.ops.kernels import find
from moe.ops.quantized import bits
from moe.parallel.feeding import batch_parts
from moe.planner import flops as flops_lib
from moe.planner.collectives import collectives as find_collectives
from moe.planner.compile_decode import CompiledDecoding, Decoding, compile_decoding
from moe.planner.hlo import Instruction, shape_bytes, unread_loops
from moe.planner.kernels import names
from moe.planner.machine import Machine
from moe.planner.roofline import by_kind_and_axes, roofline
from moe.planner.traffic import memory_traffic

_ROUTED_FFN = (*names.GPU['routed_ffn'], *names.TPU['routed_ffn'])


def plan(decoding: Decoding, machine: Machine) -> dict[str, Any]:
  """Compiles decoding and describes a step. UserError if config and machine do not match."""
  return describe(decoding, machine, compile_decoding(decoding, machine))


def describe(decoding: Decoding, machine: Machine, made: CompiledDecoding) -> dict[str, Any]:
  """The plan of compiled programs. It lacks collectives, traffic and time if the compiler refused
  the step for its size.
  """
  config, chip, step = decoding.config, machine.chip, made.step
  reserved = max(each.reserved_bytes for each in made)
  fits = reserved <= chip.capacity and not any(each.refusal for each in made)
  held = sum(step.held.values())
  record = {
    'program': 'decode',
    'config': config.name,
    'topology': machine.topology,
    'devices': machine.num_devices,
    'mesh': {axis: size for axis, size in step.mesh.items() if size > 1},
    'dtype': decoding.dtype,
    'batch': decoding.batch,
    'context': config.data.seq_len,
    'fits': fits,
    'reserved_bytes_per_device': reserved,
    'capacity_bytes_per_device': chip.capacity,
    'over_bytes_per_device': max(0, reserved - chip.capacity),
    'memory': {
      **step.held,
      'temporaries': step.reserved_bytes - held,
      'temporaries_of_prefill': made.prefill.reserved_bytes - held,
    },
    'compile_seconds': round(sum(each.seconds for each in made), 1),
    'compile_cpu_seconds': round(sum(each.cpu_seconds for each in made), 1),
  }
  if refusal := step.refusal or made.prefill.refusal:
    record['refusal'] = refusal
  return record if step.refusal else record | _performance(decoding, machine, step)


def _performance(decoding, machine, step) -> dict[str, Any]:
  config, chip, devices = decoding.config, machine.chip, machine.num_devices
  units = config.moe.experts_per_token * config.moe.mean_units
  rows = decoding.batch * units / batch_parts(step.mesh)
  flops = flops_lib.count(
    step.jaxpr, flops_lib.Setting(rows, config.data.seq_len, config.model.head_dim)
  )
  sent = find_collectives(step.text, step.mesh)
  here = -(-config.moe.num_units // step.mesh['expert'])
  chosen = chosen_experts(config, decoding.batch) * config.moe.mean_units / step.mesh['expert']
  moved = sum(memory_traffic(step.text, functools.partial(_moved_by_kernel, here, chosen)))
  times = roofline(
    chip, machine.sides, step.coordinates, flops.executed / devices, moved, sent, step.mesh
  )
  least = least_bytes(decoding) / devices
  tokens = lambda seconds: round(decoding.batch / seconds, 1)
  return {
    'flops_per_step': round(flops.executed),
    'collective_bytes_per_device': by_kind_and_axes(sent),
    'hbm_bytes_per_device': round(moved),
    'least_hbm_bytes_per_device': round(least),
    'loops_counted_once': unread_loops(step.text),
    'roofline_seconds': {term: round(value, 6) for term, value in times._asdict().items()},
    'step_seconds': round(times.step, 6),
    'step_seconds_without_overlap': round(sum(times), 6),
    'binds': times.binds,
    'tokens_per_second': tokens(times.step),
    'tokens_per_second_without_overlap': tokens(sum(times)),
    'most_tokens_per_second': tokens(least / chip.hbm),
  }


def chosen_experts(config: Config, rows: int) -> float:
  """How many of a layer's routed experts `rows` rows choose, on average at balanced routing."""
  experts, per_token = config.moe.num_experts, config.moe.experts_per_token
  return experts * (1 - (1 - per_token / experts) ** rows) if experts else 0.0


def least_bytes(decoding: Decoding) -> float:
  """The least bytes that all devices together must read for one token of every row."""
  config, rows, kind = decoding.config, decoding.batch, decoding.dtype
  size = bits(kind) / 8 if kind in FEW_BITS else jnp.dtype(kind).itemsize
  model, counted = config.model, count_params(config)
  idle = 0.0
  if unused := config.moe.num_experts - config.moe.experts_per_token:
    left = config.moe.num_experts - chosen_experts(config, rows)
    idle = counted['idle experts'] * left / unused
  weights = account(config).total_params - counted['embedding'] - idle + rows * model.d_model
  positions = rows * config.data.seq_len * model.num_layers
  cache = positions * 2 * model.num_kv_heads * model.head_dim * jnp.dtype(model.dtype).itemsize
  return weights * size + cache


def _moved_by_kernel(
  experts: int, chosen: float, instruction: Instruction, operands: Sequence[str]
) -> float | None:
  """Bytes that a kernel of the routed FFN moves: the weights of the `chosen` ones among a device's
  `experts`, and all of its other operands and results. None for any other instruction.
  """
  names_in = instruction.where.split('/')
  if instruction.op != 'custom-call' or not any(find(_ROUTED_FFN, name) for name in names_in):
    return None
  total = shape_bytes(instruction.shape, on_chip=False)
  for shape in operands:
    size, dims = shape_bytes(shape, on_chip=False), shape.partition('[')[2].partition(']')[0]
    leading = int(dims.split(',')[0]) if dims.count(',') == 2 else 0
    # One layer's matrices, or all layers'.
    is_weights = leading >= experts and leading % experts == 0
    total += size / leading * chosen if is_weights else size
  return total
