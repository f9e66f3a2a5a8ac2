"""Compiles every kernel for TPUs and GPUs that this machine does not have.

  python -m launch.aot --targets=v5e,v5p,v6e|h100,a100-40 [--out=FILE]
  make aot-tpu; make aot-gpu       # sets up the environments that this needs, and does all below

Compiles forward and backward of every op, at the layer shapes of the 2B, 16B, 145B and the widest
baseline and at odd shapes, and the decoding of 1 and 64 rows of the 16B, in bfloat16 and float32.
FILE gets one JSON object a line, for one program: its kernels, what they use of the chip (VMEM on
TPU; registers, spills, shared memory and tensor-core instructions on GPU), and what is left to XLA;
or the error, if it does not compile. FLOPs and bytes of the 2B and 16B layers follow, beside the
least possible. Exits with 1 if anything failed.
"""

import importlib.util
import json
import os
import sys

os.environ['JAX_PLATFORMS'] = 'cpu'  # JAX runs on the host; compiling needs no target device

from absl import flags

from moe import cli
from moe.errors import UserError

TARGETS = flags.DEFINE_list(
  'targets', None, 'Chips to compile for: some of v5e, v5p, v6e (TPU), or of h100, a100-40 (GPU).'
)
_SHAPES = '2b,16b,145b,gshard_137b,odd,one_token,no_token,proxy,16b_row,16b_rows'
SHAPES = flags.DEFINE_list('shapes', _SHAPES.split(','), 'Layer shapes to compile.')
DTYPES = flags.DEFINE_list('dtypes', ['bfloat16', 'float32'], 'Types to compile for.')
OPS = flags.DEFINE_list('ops', [], 'Compile only these ops; by default all.')
OUT = flags.DEFINE_string('out', '', 'File to write the records to, as JSON lines.')
COSTS = flags.DEFINE_bool('costs', True, 'Add FLOPs and bytes of the layers of the first 2 shapes.')


def main(_):
  from moe.planner.kernels import gpu, names, programs, records, tpu

  _check('targets', TARGETS.value or [], (*tpu.targets(), *gpu.targets()))
  module = gpu if TARGETS.value[0] in gpu.targets() else tpu
  _check('targets', TARGETS.value, module.targets())
  if not importlib.util.find_spec(module.COMPILER):
    raise UserError(f'--targets={",".join(TARGETS.value)} needs {module.COMPILER}: make setup-aot')
  shapes = {shape.name: shape for shape in (*programs.PAPER, *programs.ODD, *programs.DECODING)}
  _check('shapes', SHAPES.value, shapes)
  _check('dtypes', DTYPES.value, ('bfloat16', 'float32'))
  _check('ops', OPS.value or list(names.TPU), names.TPU)
  layers = [shapes[name] for name in SHAPES.value]
  made = records.records(module, TARGETS.value, layers, DTYPES.value, OPS.value, COSTS.value)
  failed = 0
  with open(OUT.value or os.devnull, 'w', encoding='utf-8') as out:
    for record in made:
      failed += 'error' in record
      print(records.line(record), flush=True)
      print(json.dumps(record), file=out, flush=True)
  print(f'{failed} failed' if failed else 'all compiled', file=sys.stderr)
  return int(failed > 0)


def _check(flag, names, known):
  for name in names or ['']:
    if name not in known:
      raise UserError(f'--{flag}={",".join(names)}: {name!r} is none of {", ".join(known)}')


if __name__ == '__main__':
  cli.run(main)
