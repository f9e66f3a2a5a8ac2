"""Will it fit, and how fast could it be? Compiles the real step for a machine that is not here.

  .venv-tpu/bin/python -m launch.plan --config=scaling:deepseek_moe_16b --topology=v5p:4x4x4
  .venv-gpu/bin/python -m launch.plan --config=scaling:deepseek_moe_16b --topology=h100:8
  .venv-gpu/bin/python -m launch.plan --config=scaling:deepseek_moe_16b --topology=a100-40:1 \\
    --program=decode --batch=1,8,64 --context=4096 --memory_fraction=0.97

`make setup-aot` makes these environments. The plan is for the config's own mesh, which
--config.mesh.… changes; --search ranks others, at most 256 for one stage on 64 devices.
--program=decode plans what `launch.generate` runs. docs/planning.md says more.
Exits with 1 if nothing fits, with 2 if nothing was worth compiling.
"""

import os

os.environ['JAX_PLATFORMS'] = 'cpu'  # JAX runs on the host; compiling needs no target device

from absl import flags

from moe import cli, host_memory
from moe.config import STORED_TYPES

CONFIG = cli.config_flag()
FORMAT = cli.format_flag()
TOPOLOGY = flags.DEFINE_string(
  'topology', None, 'Chip and size of the machine: v5e:2x4, v5p:4x4x4, v6e:4x4, h100:8, a100-40:1.'
)
MEMORY_FRACTION = flags.DEFINE_float(
  'memory_fraction',
  None,
  "Share of a GPU's memory that JAX takes (XLA_PYTHON_CLIENT_MEM_FRACTION); by default 0.75.",
)
PROGRAM = flags.DEFINE_enum('program', 'train', ['train', 'decode'], 'What to plan.')
SEARCH = flags.DEFINE_bool(
  'search',
  False,
  'Compile and rank every mesh of data × fsdp × expert × tensor (up to 4) that could fit, with the '
  'mesh.stage of the config and with 1, each with every model.remat; nothing else varies.',
)
LIMIT = flags.DEFINE_integer('limit', 0, 'With --search: compile only the first so many; 0: all.')
BATCH = flags.DEFINE_list('batch', ['1'], 'With decode: rows at once, powers of 2; one plan each.')
CONTEXT = flags.DEFINE_integer(
  'context', None, 'With decode: positions of a row; by default data.seq_len.'
)
DTYPE = flags.DEFINE_enum(
  'dtype', None, STORED_TYPES, 'With decode: type of the weights in memory; by default model.dtype.'
)
MESH = flags.DEFINE_string('mesh', '', 'With decode: AXIS=DEVICES,…; by default all along tensor.')
RECORD = flags.DEFINE_string(
  'record', '', 'FILE.jsonl to add the plan to, one for each setting; FILE.md shows them all.'
)
BASELINE = flags.DEFINE_string(
  'baseline', 'scaling:deepseek_7b', 'With decode and --record: config to compare speeds with.'
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
