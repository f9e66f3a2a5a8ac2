"""Compiles a program's Triton kernels for GPUs that this machine lacks, and reports what the
compiler made of them.

Needs jax-cuda12-plugin, jax-cuda12-pjrt and nvidia-cuda-nvcc-cu12 (for ptxas), but no GPU and no
driver. The plugin is only loaded at the first compilation. Run with JAX_PLATFORMS=cpu.
"""

import functools
import importlib.util
import math
import os
import re
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from moe.errors import UserError
from moe.ops.implementation import compiling_for
from moe.ops.kernels import find
from moe.planner.kernels.gpu_costs import itemise
from moe.planner.kernels.gpu_targets import TARGETS
from moe.planner.kernels.names import GPU, of_direction
from moe.planner.kernels.programs import Program, Shape
from moe.planner.kernels.tracing import against_the_least, balanced_layer

COMPILER = 'jax_cuda12_plugin'  # the package
# The target of Triton's custom call. It also remains in programs with compiled kernels; jax 0.12
# compiles none.
_LEFT_TO_THE_DEVICE = '"__gpu$xla.gpu.triton"'


def targets() -> tuple[str, ...]:
  return tuple(TARGETS)


def compile_program(program: Program, target: str) -> dict[str, Any]:
  """Compiles for one device of `target` and returns a JSON-able record.

  AssertionError if a kernel is missing, if work of the op is left to XLA, if products are rounded
  to TF32, or if bfloat16 products miss the tensor cores. UserError if this jax leaves Triton
  kernels to the device. JaxRuntimeError, from the compiler, if registers spill or shared memory is
  too small.
  """
  mesh = Mesh([_device(target)], ('device',), axis_types=(AxisType.Auto,))
  sharding = NamedSharding(mesh, PartitionSpec())
  dtype = jax.tree.leaves(program.arguments)[0].dtype
  through_xla = program.op == 'attention' and dtype == jnp.float32  # as its module says
  place = lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding)
  with tempfile.TemporaryDirectory() as folder:
    start = time.perf_counter()
    # Pallas asks the mesh in use which GPU to compile for.
    with compiling_for('gpu'), jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      lowered = jax.jit(program.function).lower(*jax.tree.map(place, program.arguments))
    compiled = lowered.compile(
      {
        'xla_dump_to': folder,
        'xla_gpu_cuda_data_dir': str(toolkit()),
        'xla_gpu_fail_ptx_compilation_on_register_spilling': not through_xla,
      }
    )
    seconds = time.perf_counter() - start
    kernels = _read_dump(Path(folder), TARGETS[target].architecture)
  if not kernels and _LEFT_TO_THE_DEVICE in compiled.as_text():
    raise UserError(
      f'jax {jax.__version__} compiles Triton kernels only on the GPU that runs them: '
      f'make setup-aot PYTHON=python3.11, whose jax 0.10 compiles them here'
    )
  record = {
    **program.described(),
    'target': target,
    'compile_seconds': round(seconds, 1),
    'kernels': [kernel for kernel in kernels if find(GPU[program.op], kernel['kernel'])],
    'left_to_xla': [
      kernel['kernel'] for kernel in kernels if not find(GPU[program.op], kernel['kernel'])
    ],
    'temporary_bytes': compiled.memory_analysis().temp_size_in_bytes,
  }
  if not through_xla:
    _check(program, record['kernels'], compiled.as_text(), dtype)
  return record


def layer_costs(shape: Shape, dtype: jnp.dtype) -> dict[str, Any]:
  """FLOPs and bytes of routed_ffn, forward and backward, by kernel, for equal groups, beside the
  least that it needs.

  They are read off the traced kernels (see gpu_costs): FLOPs are the dots times the programs and
  iterations that run. `once` counts each operand and result of a kernel once, as if L2 kept what
  programs share. `requested` counts every block that a program loads or stores, as if nothing were
  kept. HBM traffic lies between them. It is near `once` if one group's operands fit in L2 (50 MiB),
  since programs of one group run side by side. Nothing is compiled.
  """
  items = itemise(*balanced_layer(shape, dtype))
  once, requested = (sum(item[key] for item in items) for key in ('bytes_once', 'bytes_requested'))
  return against_the_least(shape, dtype, items, once) | {
    'bytes_once': once,
    'bytes_requested': requested,
  }


def _read_dump(folder: Path, architecture: str) -> list[dict[str, Any]]:
  """A record of every kernel that the program launches, XLA's too, from ptxas, the PTX and XLA's
  launch dimensions.
  """
  launches = {}
  for path in folder.glob('*thunk_sequence.txt'):
    pattern = r'\s(\w+) grid: \[(\d+)[^]]*\] threads: \[(\d+)[^]]*\]\s+shared_memory: (\d+)'
    for name, grid, threads, shared in re.findall(pattern, path.read_text()):
      launches[name] = {
        'grid': int(grid),
        'threads': int(threads),
        'shared_memory_bytes': int(shared),
      }
  kernels = []
  for path in sorted(folder.glob('*.ptx')):
    ptx = path.read_text()
    if '.entry' not in ptx:  # constants alone
      continue
    command = [toolkit() / 'bin/ptxas', '-v', f'-arch={architecture}', path, '-o', os.devnull]
    report = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    pattern = (
      r"entry function '(\w+)'.*?(\d+) bytes spill stores, "
      r'(\d+) bytes spill loads.*?Used (\d+) registers'
    )
    for name, stores, loads, registers in re.findall(pattern, report, re.DOTALL):
      kernels.append(
        {
          'kernel': name,
          'registers': int(registers),
          'spill_bytes': int(stores) + int(loads),
          **launches.get(name, {}),
          'tensor_core': next((i for i in ('wgmma.mma_async', 'mma.sync') if i in ptx), None),
          'tf32': '.tf32' in ptx,
        }
      )
  return kernels


def _check(program: Program, kernels: list[dict], text: str, dtype: jnp.dtype) -> None:
  name = f'{program.op} {program.direction} {dtype}'
  empty = any(math.prod(a.shape) == 0 for a in jax.tree.leaves(program.arguments))
  wanted = [] if empty else of_direction(GPU[program.op], program.direction)
  wanted = [kernel.name for kernel in wanted]
  found = [kernel['kernel'] for kernel in kernels]
  assert sorted(found) == sorted(wanted), f'{name}: kernels {found}, expected {wanted}'
  for kernel in kernels:
    assert kernel['spill_bytes'] == 0, f'{name}: {kernel["kernel"]} spills'
    assert not kernel['tf32'], f'{name}: {kernel["kernel"]} rounds to TF32'
    if dtype == jnp.bfloat16 and find(GPU[program.op], kernel['kernel']).products:
      assert kernel['tensor_core'], f'{name}: {kernel["kernel"]} misses the tensor cores'
  # XLA may gather and scatter one number per (token, expert) assignment (a dispatch plan's arrays,
  # gates by row and back) or a table of E.
  most = max(
    [
      1024,
      *(math.prod(a.shape) for a in jax.tree.leaves(program.arguments) if a.dtype == jnp.int32),
    ]
  )
  for dims, op in re.findall(
    r'= \w+\[([\d,]*)\]\S* (dot|convolution|ragged-dot|gather|scatter)\(', text
  ):
    elements = math.prod(int(d) for d in dims.split(',') if d)
    assert op in ('gather', 'scatter'), f'{name}: XLA computes {op}[{dims}]'
    assert elements <= most, f'{name}: XLA moves rows, {op}[{dims}]'
  assert '__cublas' not in text, f'{name}: XLA multiplies with cuBLAS'


def toolkit() -> Path:
  """The folder of the nvidia-cuda-nvcc wheel: bin/ptxas and libdevice."""
  spec = importlib.util.find_spec('nvidia.cuda_nvcc')
  if spec is None:
    raise ModuleNotFoundError('compiling for a GPU needs ptxas: pip install nvidia-cuda-nvcc-cu12')
  return Path(next(iter(spec.submodule_search_locations)))


@functools.cache
def _device(target: str) -> jax.Device:
  os.environ.setdefault('JAX_SKIP_CUDA_CONSTRAINTS_CHECK', '1')
  description = TARGETS[target].description
  return topologies.get_topology_desc(
    platform='cuda', topology_name=target, target_config=description, topology='1x1x1'
  ).devices[0]
