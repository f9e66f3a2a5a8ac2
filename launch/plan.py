"""Will it fit, and how fast could it be? Compiles the real step for a machine that is not here.

  .venv-tpu/bin/python -m launch.plan --config=scaling:deepseek_moe_16b --topology=v5p:4x4x4
  .venv-gpu/bin/python -m launch.plan --config=scaling:deepseek_moe_16b --topology=h100:8
  .venv-gpu/bin/python -m launch.plan --config=scaling:deepseek_moe_16b --topology=a100-40:1 \
    --program=decode --batch=1,8,64 --context=4096 --memory_fraction=0.97

`make setup-aot` makes these environments. The config's own mesh is planned for, --config.mesh.…
changes it; with --search others are compiled, minutes each, and ranked: with the config's
mesh.stage and with 1 stage, every way to deal the devices out to data, fsdp, expert and tensor (up
to 4) whose state and gradients fit, with each model.remat. All else is the config's, microbatches,
mesh.zero and mesh.transport too. That is 256 plans at most for one stage on 64 devices; --limit
takes the first so many, those with the fewest devices along expert and then tensor. The ranking is
by the time that a step takes if nothing overlaps.
Exits with 1 where nothing fits, with 2 where nothing was worth compiling.

--program=decode plans what `launch.generate` runs instead: one token of every row of a batch, and a
piece of a prompt. All devices are along tensor, unless --mesh says otherwise.
"""

import functools
import json
import os
import sys
from pathlib import Path

os.environ['JAX_PLATFORMS'] = 'cpu'  # the host's own; targets are compiled for without being there

from absl import flags

from moe import cli, host_memory
from moe.config import mesh_sizes
from moe.errors import UserError

CONFIG = cli.config_flag()
FORMAT = cli.format_flag()
TOPOLOGY = flags.DEFINE_string(
  'topology', None, 'v5e:2x4, v5p:4x4x4, v6e:4x4, h100:8, a100-40:1: chip and size of the machine.'
)
PROGRAM = flags.DEFINE_enum('program', 'train', ['train', 'decode'], 'Training step or decoding.')
BATCH = flags.DEFINE_list('batch', ['1'], 'With decode: rows at once, powers of 2; several.')
CONTEXT = flags.DEFINE_integer('context', None, 'With decode: positions of a row; data.seq_len.')
DTYPE = flags.DEFINE_enum(
  'dtype', None, ['bfloat16', 'float32'], 'With decode: of the stored weights; model.dtype.'
)
MESH = flags.DEFINE_string('mesh', '', 'With decode: AXIS=DEVICES,…; without it all along tensor.')
MEMORY_FRACTION = flags.DEFINE_float(
  'memory_fraction', None, "Of a GPU's memory for JAX (XLA_PYTHON_CLIENT_MEM_FRACTION); JAX's 0.75."
)
BASELINE = flags.DEFINE_string(
  'baseline', 'scaling:deepseek_7b', "With decode and --record: whose speed others' is divided by."
)
SEARCH = flags.DEFINE_bool(
  'search',
  False,
  'Compile and rank every data × fsdp × expert × tensor (up to 4) that could fit, with the '
  'mesh.stage of the config and with 1, and every model.remat; nothing else is varied.',
)
LIMIT = flags.DEFINE_integer('limit', 0, 'With --search: compile only so many of them; 0: all.')
RECORD = flags.DEFINE_string(
  'record', '', 'FILE.jsonl that collects plans, one a config and machine; FILE.md shows it.'
)


def main(_):
  config = cli.config(CONFIG)
  if not TOPOLOGY.value:
    raise UserError('--topology=CHIP:SIZE is required, for example --topology=v5p:4x4x4')
  from moe.planner import machine, planner, report, search

  if SEARCH.value and RECORD.value:
    raise UserError('--record collects plans of configs as they are: leave it out, or --search')
  target = machine.parse(TOPOLOGY.value)
  if MEMORY_FRACTION.value is not None:
    target = machine.with_memory(target, MEMORY_FRACTION.value)
  report.try_record(RECORD.value)
  if PROGRAM.value == 'decode':
    return _decode(config, target)
  if not SEARCH.value:
    record = planner.plan(config, target)
    if RECORD.value:
      report.record_plans(Path(RECORD.value), [record], report.table)
    print(json.dumps(record, indent=2) if FORMAT.value == 'json' else report.text(record))
    return int(not record['fits'])
  tell = lambda text: print(text, file=sys.stderr, flush=True)
  ranked = search.searched(config, target, LIMIT.value or None, tell)
  print(
    json.dumps(ranked, indent=2) if FORMAT.value == 'json' else '\n'.join(map(report.text, ranked))
  )
  return int(not any(record['fits'] for record in ranked))


def _decode(config, target):
  from moe.planner import decode, decode_report, report
  from moe.planner.compile_decode import Decoding

  if SEARCH.value:
    raise UserError('--search ranks training steps: leave it out, or --program=decode')
  axes, context = mesh_sizes(MESH.value), CONTEXT.value or config.data.seq_len
  dtype, records = DTYPE.value or config.model.dtype, []
  for rows in BATCH.value:
    if not rows.isdecimal() or int(rows) < 1:
      raise UserError(f'--batch={",".join(BATCH.value)}: {rows!r} must be a number of at least 1')
  for rows in map(int, BATCH.value):
    decoding = Decoding.of(config, target.num_devices, axes, dtype, rows, context=context)
    records.append(decode.plan(decoding, target))
    if FORMAT.value != 'json':
      print(decode_report.text(records[-1]), flush=True)
  if FORMAT.value == 'json':
    print(json.dumps(records, indent=2))
  if RECORD.value:
    table = functools.partial(decode_report.table, baseline=BASELINE.value)
    report.record_plans(Path(RECORD.value), records, table, decode_report.KEYS)
  return int(not any(record['fits'] for record in records))


if __name__ == '__main__':
  cli.run(main, memory=host_memory.TRAINING, keep_compiled=False)
