"""Samples from a run.

python -m launch.generate --workdir=DIR --prompt='def main(' [--prompt=… --temperature=0.8]
python -m launch.generate --workdir=DIR --prompts=FILE [--batch=64 --stop=$'\\n\\n' --format=json]
python -m launch.generate --workdir=DIR --dtype=bfloat16|int8|int4 --mesh=tensor=4
"""

import json
from pathlib import Path

from absl import flags

from moe import cli, host_memory
from moe.config import mesh_sizes
from moe.errors import UserError

WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run.', required=True)
STEP = flags.DEFINE_integer('step', None, 'Checkpoint to sample from; by default the newest.')
PROMPT = flags.DEFINE_multi_string('prompt', [], 'Text to continue; repeatable. By default empty.')
PROMPTS = flags.DEFINE_string(
  'prompts', None, 'File of prompts: one a line, or JSON, CSV or Parquet with a field `prompt`.'
)
BATCH = flags.DEFINE_integer('batch', 16, 'Prompts at once; does not change the answers.')
STOP = flags.DEFINE_multi_string('stop', [], 'Text before which a completion ends; repeatable.')
MAX_NEW_TOKENS = flags.DEFINE_integer('max_new_tokens', 128, 'Maximum number of new tokens.')
TEMPERATURE = flags.DEFINE_float('temperature', 0.8, 'Sampling temperature; 0 is greedy.')
TOP_K = flags.DEFINE_integer('top_k', 0, 'Sample from the k most likely tokens; 0: from all.')
TOP_P = flags.DEFINE_float(
  'top_p', 0.95, 'Sample from the fewest tokens that together have this probability.'
)
SEED = flags.DEFINE_integer('seed', 0, 'Seed for sampling.')
DTYPE = cli.dtype_flag()
MESH = flags.DEFINE_string(
  'mesh', '', 'Mesh for the parameters: AXIS=DEVICES,…; by default one device.'
)
FORMAT = cli.format_flag()


def main(_):
  from moe.data.readers import Rules, read_texts
  from moe.generate import Sampling, generate, only_generating
  from moe.run import load_run

  sizes = mesh_sizes(MESH.value)
  sampling = Sampling(TEMPERATURE.value, TOP_K.value, TOP_P.value)
  sampling.check()
  prompts = list(PROMPT.value)
  if PROMPTS.value is not None:
    prompts += read_texts(Path(PROMPTS.value), 'prompt', Rules(separator='\n'))
    if not prompts:
      raise UserError(f'--prompts={PROMPTS.value} holds no prompt')
  limits = MAX_NEW_TOKENS.value, sampling, SEED.value, STOP.value, BATCH.value
  run = load_run(WORKDIR.value, STEP.value, DTYPE.value, sizes)
  with run.on_mesh():
    completions = generate(only_generating(run), prompts or [''], *limits)
  if FORMAT.value == 'json':
    print(json.dumps([completion._asdict() for completion in completions], indent=2))
    return
  for completion in completions:
    print(
      f'{completion.prompt}{completion.text}\n--- {len(completion.tokens)} tokens, '
      f'stopped by {completion.stopped_by}'
    )


if __name__ == '__main__':
  cli.run(main, memory=host_memory.SAMPLING)
