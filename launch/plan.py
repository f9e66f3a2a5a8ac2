"""Will it fit, and how fast could it be? Compiles the real step for a machine that is not here.

  .venv-tpu/bin/python -m launch.plan --config=scaling:deepseek_moe_16b --topology=v5p:4x4x4
  .venv-gpu/bin/python -m launch.plan --config=scaling:deepseek_moe_16b --topology=h100:8

`make setup-aot` makes these environments. The config's own mesh is planned for, --config.mesh.…
changes it; with --search others are compiled, minutes each, and ranked: with the config's
mesh.stage and with 1 stage, every way to deal the devices out to data, fsdp, expert and tensor (up
to 4) whose state and gradients fit, with each model.remat. All else is the config's, microbatches,
mesh.zero and mesh.transport too. That is 256 plans at most for one stage on 64 devices; --limit
takes the first so many, those with the fewest devices along expert and then tensor. The ranking is
by the time that a step takes if nothing overlaps.
Exits with 1 where nothing fits, with 2 where nothing was worth compiling.
"""

import json
import os
import sys
from pathlib import Path

os.environ['JAX_PLATFORMS'] = 'cpu'  # the host's own; targets are compiled for without being there

from absl import flags

from moe import cli, host_memory
from moe.errors import UserError

CONFIG = cli.config_flag()
FORMAT = cli.format_flag()
TOPOLOGY = flags.DEFINE_string(
  'topology', None, 'v5e:2x4, v5p:4x4x4, v6e:4x4, h100:8: chip and size of the machine.'
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
  report.try_record(RECORD.value)
  if not SEARCH.value:
    record = planner.plan(config, target)
    if RECORD.value:
      report.record_plan(Path(RECORD.value), record)
    print(json.dumps(record, indent=2) if FORMAT.value == 'json' else report.text(record))
    return int(not record['fits'])
  tell = lambda text: print(text, file=sys.stderr, flush=True)
  ranked = search.searched(config, target, LIMIT.value or None, tell)
  print(
    json.dumps(ranked, indent=2) if FORMAT.value == 'json' else '\n'.join(map(report.text, ranked))
  )
  return int(not any(record['fits'] for record in ranked))


if __name__ == '__main__':
  cli.run(main, memory=host_memory.TRAINING, keep_compiled=False)
