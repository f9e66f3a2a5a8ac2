"""Compiles a program's Mosaic kernels for TPUs that this machine lacks, and reports what the
kernels compute and move.

Needs libtpu (`pip install "jax[tpu]"`), which is only loaded at the first compilation. Run with
JAX_PLATFORMS=cpu.
"""

import functools
import math
import os
import re
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from moe.ops.implementation import compiling_for
from moe.planner.kernels.names import TPU, of_direction
from moe.planner.kernels.programs import Program, Shape
from moe.planner.kernels.tpu_costs import itemise, traced_kernels
from moe.planner.kernels.tracing import against_the_least, balanced_layer

COMPILER = 'libtpu'  # the package
# The smallest topology of each chip; only one device of it is used.
TOPOLOGIES = {'v5e': 'v5e:2x2', 'v5p': 'v5p:2x2x1', 'v6e': 'v6e:2x2'}
ENVIRONMENT = {
  'TPU_SKIP_MDS_QUERY': '1',
  'TPU_ACCELERATOR_TYPE': 'v5litepod-8',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
}
# Work that belongs in kernels. XLA may gather and scatter one number per (token, expert) assignment
# (a plan's row_TK and token_R, gates by row and back), look up the tiles' tables, and convert, pad
# or slice arrays.
_FORBIDDEN = ('dot', 'convolution', 'ragged-dot')
_NUMBERS_ONLY = ('gather', 'scatter', 'dynamic-update-slice')


def targets() -> tuple[str, ...]:
  return tuple(TOPOLOGIES)


def compile_program(program: Program, target: str) -> dict[str, Any]:
  """Compiles for one device of `target` and returns a JSON-able record. AssertionError if a kernel
  is missing, or work of the op is left to XLA.
  """
  sharding = _sharding(target)
  place = lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding)
  arguments = jax.tree.map(place, program.arguments)
  start = time.perf_counter()
  with compiling_for('tpu'):
    lowered = jax.jit(program.function).lower(*arguments)
  compiled = lowered.compile()
  seconds = time.perf_counter() - start
  instructions = parse_entry(compiled.as_text())
  memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
  calls = [i for i in instructions if i['kernel']]
  leftovers = check_kernels(program, calls, compiled.as_text())
  return {
    **program.described(),
    'target': target,
    'compile_seconds': round(seconds, 1),
    'kernels': [
      {key: call[key] for key in ('kernel', 'vmem_bytes', 'flops', 'bytes')} for call in calls
    ],
    'vmem_bytes': max((call['vmem_bytes'] or 0 for call in calls), default=0),
    'left_to_xla': leftovers,
    'peak_hbm_bytes': memory.peak_memory_in_bytes,
    'flops': sum(call['flops'] for call in calls),
    # Kernels count by their cost estimates, XLA's ops by their arrays.
    'hbm_bytes': sum(i['bytes'] for i in instructions),
    'xla_bytes_accessed': cost.get('bytes accessed', 0.0) if cost else None,
  }


def check_kernels(program: Program, calls: list[dict], text: str) -> list[str]:
  """The gathers, scatters and updates that are left to XLA. AssertionError if a kernel is missing,
  if XLA computes products, or if it moves more than single numbers.
  """
  empty = any(math.prod(a.shape) == 0 for a in jax.tree.leaves(program.arguments))
  wanted = [] if empty else of_direction(TPU[program.op], program.direction)
  found = [call['kernel'] for call in calls]
  missing = [kernel.name for kernel in wanted if not any(map(kernel.is_called, found))]
  assert not missing, f'{program.op} {program.direction}: no kernel {missing} among {found}'
  most = _assignments(program)
  left = []
  for shape, op in re.findall(r'= \w+(\[[\d,]*\])\S* ([a-z-]+)\(', text):
    assert op not in _FORBIDDEN, f'{program.op} {program.direction}: XLA computes {op} {shape}'
    if op in _NUMBERS_ONLY:
      assert _elements(shape) <= most, (
        f'{program.op} {program.direction}: XLA moves rows, {op} {shape}'
      )
      left.append(f'{op} {shape}')
  return left


def layer_costs(shape: Shape, dtype: jnp.dtype) -> dict[str, Any]:
  """FLOPs and HBM bytes of routed_ffn, forward and backward, by kernel, for equal groups, beside
  the least that it needs.

  They are read off the traced kernels. FLOPs are the dots times the grid steps that compute. Bytes
  are the blocks times the steps on which a block changes, when the pipeline copies it. Nothing is
  compiled.
  """
  function, arguments = balanced_layer(shape, dtype)
  items = [itemise(kernel) for kernel in traced_kernels(function, arguments)]
  size, weights = jnp.dtype(dtype).itemsize, 3 * shape.num_experts * shape.d_model * shape.d_expert
  casts = 0 if size == 4 else 2 * weights * (4 + size)  # by XLA, once forward and once backward
  moved = sum(item['bytes'] for item in items) + casts
  return against_the_least(shape, dtype, items, moved) | {
    'bytes': moved,
    'weight_cast_bytes': casts,
  }


def parse_entry(text: str) -> list[dict[str, Any]]:
  """Instructions of the entry computation that move bytes: name, op, and the bytes of the result
  and of the operands, as if each is read once.

  For kernels also the kernel's name, its VMEM (the scoped memory that the compiler allotted within
  the limit that it was given), and FLOPs and bytes of the cost estimate. Those bytes replace the
  bytes of operands and result: a kernel may read an operand more than once.
  """
  # A kernel's metadata may span several lines.
  entry = re.split(r'\n(?=  (?:ROOT )?%)', text[text.index('\nENTRY ') :])[1:]
  sizes, instructions = {}, []
  for line in entry:
    match = re.match(r'\s*(?:ROOT )?%(\S+) = (.*?) ([a-z][a-z-]*)\((.*)', line, re.DOTALL)
    if not match:
      continue
    name, result, op, rest = match.groups()
    sizes[name] = _bytes(result)
    if op in _MOVE_NOTHING:
      continue
    operands = re.findall(r'%([^\s,()]+)', rest.split('), ')[0])
    item = {
      'op': op,
      'name': name,
      'bytes': sizes[name] + sum(sizes.get(o, 0) for o in operands),
      'kernel': None,
    }
    if 'custom_call_target="tpu_custom_call"' in line:
      estimate = re.search(
        r'"flops":"(\d+)","transcendentals":"\d+","bytes_accessed":"(\d+)"', line
      )
      item |= {'flops': int(estimate[1]), 'bytes': int(estimate[2])} if estimate else {'flops': 0}
      scoped = re.search(
        r'"used_scoped_memory_configs":\[\{"memory_space":"1","offset":"0","size":"(\d+)"', line
      )
      item['vmem_bytes'] = int(scoped[1]) if scoped else None
      path = re.search(r'op_name="([^"]*)"', line)[1].removesuffix('/pallas_call')
      item['kernel'] = re.findall(r'\w+', path)[-1]
    instructions.append(item)
  return instructions


_MOVE_NOTHING = (
  'parameter',
  'get-tuple-element',
  'bitcast',
  'tuple',
  'constant',
  'copy-done',
  'iota',
  'after-all',
)
_ITEM_BYTES = {
  'pred': 1,
  's8': 1,
  'u8': 1,
  'bf16': 2,
  'f16': 2,
  's16': 2,
  'u16': 2,
  's32': 4,
  'u32': 4,
  'f32': 4,
}


def _bytes(shapes: str) -> int:
  """Bytes of a shape in HLO text, or of a tuple of them. Unknown types count nothing."""
  found = re.findall(r'(\w+)\[([\d,]*)\]', shapes)
  return sum(_ITEM_BYTES.get(kind, 0) * _elements(dims) for kind, dims in found)


def _elements(dims: str) -> int:
  return math.prod(int(d) for d in re.findall(r'\d+', dims))


def _assignments(program: Program) -> int:
  """The most numbers that XLA may gather or scatter: one per (token, expert) assignment, or a table
  of E by blocks.
  """
  of = {
    a.dtype: math.prod(a.shape) for a in jax.tree.leaves(program.arguments) if a.dtype == jnp.int32
  }
  return max(1024, of.get(jnp.dtype(jnp.int32), 0))


@functools.cache
def _sharding(target: str) -> NamedSharding:
  for name, value in ENVIRONMENT.items():
    os.environ.setdefault(name, value)
  topology = topologies.get_topology_desc(platform='tpu', topology_name=TOPOLOGIES[target])
  return NamedSharding(Mesh(np.array(topology.devices[:1]), ('device',)), PartitionSpec())
