"""Will it fit, and how fast could it be? Compiles the real step for a machine that is not here.

  .venv-tpu/bin/python -m launch.plan --config=scaling:deepseek_moe_16b --topology=v5p:4x4x4
  .venv-gpu/bin/python -m launch.plan --config=scaling:deepseek_moe_16b --topology=h100:8
  .venv-gpu/bin/python -m launch.plan --config=scaling:deepseek_moe_16b --topology=a100-40:1 \
    --program=decode --batch=1,8,64 --context=4096 --memory_fraction=0.97

`make setup-aot` makes these environments. The config's own mesh is planned for, --config.mesh.…
changes it; --search ranks others, at most 256 for one stage on 64 devices. --program=decode plans
what `launch.generate` runs. docs/planning.md says more.
Exits with 1 where nothing fits, with 2 where nothing was worth compiling.
"""

import os

os.environ['JAX_PLATFORMS'] = 'cpu'  # the host's own; targets are compiled for without being there

from absl import flags

from moe import cli, host_memory
from moe.config import STORED_TYPES

CONFIG = cli.config_flag()
FORMAT = cli.format_flag()
TOPOLOGY = flags.DEFINE_string(
  'topology', None, 'v5e:2x4, v5p:4x4x4, v6e:4x4, h100:8, a100-40:1: chip and size of the machine.'
)
MEMORY_FRACTION = flags.DEFINE_float(
  'memory_fraction', None, "Of a GPU's memory for JAX (XLA_PYTHON_CLIENT_MEM_FRACTION); JAX's 0.75."
)
PROGRAM = flags.DEFINE_enum('program', 'train', ['train', 'decode'], 'Training step or decoding.')
SEARCH = flags.DEFINE_bool(
  'search',
  False,
  'Compile and rank every data × fsdp × expert × tensor (up to 4) that could fit, with the '
  'mesh.stage of the config and with 1, and every model.remat; nothing else is varied.',
)
LIMIT = flags.DEFINE_integer('limit', 0, 'With --search: compile only so many of them; 0: all.')
BATCH = flags.DEFINE_list('batch', ['1'], 'With decode: rows at once, powers of 2; several.')
CONTEXT = flags.DEFINE_integer('context', None, 'With decode: positions of a row; data.seq_len.')
DTYPE = flags.DEFINE_enum(
  'dtype', None, STORED_TYPES, 'With decode: of the weights in memory; model.dtype.'
)
MESH = flags.DEFINE_string('mesh', '', 'With decode: AXIS=DEVICES,…; without it all along tensor.')
RECORD = flags.DEFINE_string(
  'record', '', 'FILE.jsonl that collects plans, one a config and machine; FILE.md shows it.'
)
BASELINE = flags.DEFINE_string(
  'baseline', 'scaling:deepseek_7b', "With decode and --record: whose speed others' is divided by."
)


def main(_):
  config = cli.config(CONFIG)
  from moe.planner import program

  named = (TOPOLOGY, MEMORY_FRACTION, SEARCH, LIMIT, BATCH, CONTEXT, DTYPE, MESH, BASELINE, RECORD)
  values = {flag.name: flag.value for flag in named}
  asked = program.Asked(**values, as_json=FORMAT.value == 'json')
  return program.run(PROGRAM.value, config, asked)


if __name__ == '__main__':
  cli.run(main, memory=host_memory.TRAINING, keep_compiled=False)
