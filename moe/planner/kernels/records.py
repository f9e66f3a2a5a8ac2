"""What launch.aot writes: a record for each program, whether it compiled or not, and a line of text
for people.
"""

from collections.abc import Iterator, Sequence
from types import ModuleType

import jax.numpy as jnp

from moe.planner.kernels.programs import programs


def records(
  module: ModuleType,
  targets: Sequence[str],
  shapes: Sequence,
  dtypes: Sequence[str],
  ops: Sequence[str],
  costs: bool,
) -> Iterator[dict]:
  """Yields a record of every program for every target, shape and type. Empty `ops` means all ops.

  With `costs`, records of layer costs for the first two shapes follow. `module`:
  moe.planner.kernels.tpu or gpu, which compiles for all the targets.
  """
  for target in targets:
    for shape in shapes:
      for dtype in dtypes:
        for program in programs(shape, jnp.dtype(dtype)):
          # A backward program contains the forward.
          if program.direction != 'forward' and program.op in (ops or [program.op]):
            yield {
              'target': target,
              'shape': shape.name,
              **_compiled(module, program, target, dtype),
            }
  for shape in shapes[:2] if costs else []:
    for dtype in dtypes:
      of_layer = module.layer_costs(shape, jnp.dtype(dtype))
      yield {'target': 'all', 'op': 'routed_ffn', **of_layer}


def _compiled(module, program, target: str, dtype: str) -> dict:
  named = {'op': program.op, 'dtype': dtype}
  try:
    return module.compile_program(program, target) | named
  except Exception as error:  # one that does not compile must not hide the others
    return named | {'error': f'{type(error).__name__}: {" ".join(str(error).split())[:300]}'}


def line(record: dict) -> str:
  """A record as a line of text for people."""
  what = f'{record["op"]}, {record["direction"]}' if 'direction' in record else record['op']
  head = f'{record["target"]:<8}{record["shape"]:<12}{record["dtype"]:<9}{what:<28}'
  if 'error' in record:
    return f'{head}FAILED {record["error"]}'
  if 'flops_ratio' in record:
    return f'{head}FLOPs {record["flops_ratio"]}× the least, bytes {record["bytes_ratio"]}×'
  return f'{head}{record["compile_seconds"]:6.1f} s  ' + '; '.join(map(_kernel, record['kernels']))


def _kernel(kernel: dict) -> str:
  if 'vmem_bytes' in kernel:
    return f'{kernel["kernel"]} {(kernel["vmem_bytes"] or 0) / 2**20:.1f} MiB VMEM'
  return (
    f'{kernel["kernel"]} {kernel["registers"]} registers, '
    f'{kernel.get("shared_memory_bytes", 0) >> 10} KiB shared, {kernel["spill_bytes"]} B spilled, '
    f'{kernel["tensor_core"] or "no tensor cores"}'
  )
