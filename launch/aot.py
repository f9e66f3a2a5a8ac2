"""Compiles every kernel for machines that this one is not: python -m launch.aot --targets=v5e,v5p,v6e|h100 [--out=FILE]

  make aot-tpu; make aot-gpu       # the environments that this needs, and everything below

Forward and backward of every op at the shapes of the 2B, 16B, 145B and widest baseline's layers and at odd ones, in
bfloat16 and float32. FILE gets a JSON object a line: a program's kernels with what they use of the chip (VMEM on TPU;
registers, spills, shared memory and tensor-core instructions on GPU) and what is left to XLA; or the error of one that
does not compile. Then FLOPs and bytes of the 2B and 16B layers against the least. Exits with 1 where anything failed.
"""

import importlib.util
import json
import os
import sys
from collections.abc import Callable, Iterator

os.environ['JAX_PLATFORMS'] = 'cpu'  # the host's own; targets are compiled for without being there

from absl import flags

from moe import cli
from moe.errors import UserError

TARGETS = flags.DEFINE_list(
  'targets', None, 'Of v5e, v5p, v6e (TPU) or h100 (GPU), all of one kind.'
)
SHAPES = flags.DEFINE_list(
  'shapes', ['2b', '16b', '145b', 'gshard_137b', 'odd', 'one_token', 'no_token', 'proxy'], 'Layers.'
)
DTYPES = flags.DEFINE_list('dtypes', ['bfloat16', 'float32'], 'Types.')
OPS = flags.DEFINE_list('ops', [], 'Only these ops.')
OUT = flags.DEFINE_string('out', '', 'JSON lines are written here too.')
COSTS = flags.DEFINE_bool('costs', True, "Also FLOPs and bytes of the 2B and 16B layers' kernels.")


def main(_):
  from moe.planner.kernels import gpu, names, programs, tpu

  _check('targets', TARGETS.value or [], (*tpu.targets(), *gpu.targets()))
  module = gpu if TARGETS.value[0] in gpu.targets() else tpu
  _check('targets', TARGETS.value, module.targets())
  if not importlib.util.find_spec(module.COMPILER):
    raise UserError(
      f'compiling for {", ".join(TARGETS.value)} needs the package {module.COMPILER}: make setup-aot'
    )
  shapes = {shape.name: shape for shape in (*programs.PAPER, *programs.ODD)}
  _check('shapes', SHAPES.value, shapes)
  _check('dtypes', DTYPES.value, ('bfloat16', 'float32'))
  _check('ops', OPS.value or list(names.TPU), names.TPU)
  failed = 0
  with open(OUT.value or os.devnull, 'w', encoding='utf-8') as out:
    for record in _records(module, [shapes[name] for name in SHAPES.value], programs.programs):
      failed += 'error' in record
      print(line(record), flush=True)
      print(json.dumps(record), file=out, flush=True)
  print(f'{failed} failed' if failed else 'all compiled', file=sys.stderr)
  return int(failed > 0)


def line(record: dict) -> str:
  """One record for people."""
  head = f'{record["target"]:<5}{record["shape"]:<10}{record["dtype"]:<9}{record["op"]:<15}'
  if 'error' in record:
    return f'{head}FAILED {record["error"]}'
  if 'flops_ratio' in record:
    return f'{head}FLOPs {record["flops_ratio"]}× the least, bytes {record["bytes_ratio"]}×'
  return f'{head}{record["compile_seconds"]:6.1f} s  ' + '; '.join(map(_kernel, record['kernels']))


def _kernel(kernel: dict) -> str:
  if 'vmem_bytes' in kernel:
    return f'{kernel["kernel"]} {(kernel["vmem_bytes"] or 0) / 2**20:.1f} MiB VMEM'
  return (
    f'{kernel["kernel"]} {kernel["registers"]} registers, {kernel.get("shared_memory_bytes", 0) >> 10} KiB shared, '
    f'{kernel["spill_bytes"]} B spilled, {kernel["tensor_core"] or "no tensor cores"}'
  )


def _records(module, shapes: list, programs: Callable) -> Iterator[dict]:
  import jax.numpy as jnp

  for target in TARGETS.value:
    for shape in shapes:
      for dtype in DTYPES.value:
        for program in programs(shape, jnp.dtype(dtype)):
          # Forward is a part of what backward compiles.
          if program.direction == 'backward' and program.op in (OPS.value or [program.op]):
            yield {
              'target': target,
              'shape': shape.name,
              **_compiled(module, program, target, dtype),
            }
  for shape in shapes[:2] if COSTS.value else []:
    for dtype in DTYPES.value:
      costs = module.layer_costs(shape, jnp.dtype(dtype))
      yield {'target': 'all', 'op': 'routed_ffn', **costs}


def _compiled(module, program, target: str, dtype: str) -> dict:
  named = {'op': program.op, 'dtype': dtype}
  try:
    return module.compile_program(program, target) | named
  except Exception as error:  # one that does not compile must not hide the others
    return named | {'error': f'{type(error).__name__}: {" ".join(str(error).split())[:300]}'}


def _check(flag, names, known):
  for name in names or ['']:
    if name not in known:
      raise UserError(f'--{flag}={",".join(names)}: {name!r} is none of {", ".join(known)}')


if __name__ == '__main__':
  cli.run(main)
