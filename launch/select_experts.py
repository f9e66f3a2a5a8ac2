"""Chooses the experts that a task needs, for training them alone.

  python -m launch.select_experts --workdir=RUN --out=FILE.json [--by=gate|share|random]
    [--mass=0.2] [--sources='DOMAIN=FILES;…' --chat] [--step=N] [--max_batches=N]

Reads the task's text from --sources, written as data.sources; with --chat they are conversations,
of which it reads the replies. Without --sources it reads the run's held-out text. In each layer it
takes the fewest experts whose scores reach --mass of the layer's sum; a score is the sum of an
expert's gates (gate), or how many tokens chose it (share). --by=random is the baseline: it draws as
many experts as --by=gate takes, from --seed. FILE.json has one line a layer, to read and to edit;
--config.finetune.trainable=experts --config.finetune.experts=FILE.json trains these experts alone.
$DATA is the folder of the run's prepared data, if that is not where training read it.
"""

import os

from absl import flags

from moe import cli, host_memory
from moe.errors import UserError

WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run.', required=True)
STEP = flags.DEFINE_integer('step', None, 'Checkpoint to read; by default the newest.')
OUT = flags.DEFINE_string('out', None, 'JSON file to write.', required=True)
BY = flags.DEFINE_enum('by', 'gate', ['gate', 'share', 'random'], 'How experts are chosen.')
SEED = flags.DEFINE_integer('seed', 0, 'Seed for --by=random.', lower_bound=0)
MASS = flags.DEFINE_float('mass', 0.2, "Share of a layer's scores that the chosen experts reach.")
SOURCES = flags.DEFINE_string('sources', None, "The task's text, written as data.sources.")
CHAT = flags.DEFINE_bool(
  'chat', None, "Whether --sources are conversations; by default as the run's text."
)
MAX_BATCHES = flags.DEFINE_integer(
  'max_batches', None, 'Read at most so many batches of each domain.', lower_bound=1
)


def main(_):
  from moe.data import given, store
  from moe.finetune import select
  from moe.run import data_directory, load_run

  select.check_mass(MASS.value)
  if CHAT.value is not None and SOURCES.value is None:
    raise UserError('--chat says what --sources are: give --sources too')
  path = select.check_target(OUT.value)
  run = load_run(WORKDIR.value, STEP.value)
  if SOURCES.value is None:
    directory = os.environ.get('DATA') or data_directory(run.config, WORKDIR.value)
    data, text = store.open_held_out(directory, run.tokenizer), 'held-out text of the run'
  else:
    run = select.reading(run, CHAT.value)
    data, text = given.open_given(SOURCES.value, run.config.data, run.tokenizer), SOURCES.value
  layers, tokens = select.select(run, data, BY.value, MASS.value, MAX_BATCHES.value, SEED.value)
  about = {'by': BY.value, 'mass': MASS.value, 'text': text, 'tokens': tokens}
  about['checkpoint'] = select.checkpoint(WORKDIR.value, run.step)
  select.write(path, layers, about)
  print(f'{run.config.name}, step {run.step}, {tokens:,} tokens, by {BY.value}')
  print(select.table(layers, run.config.moe.num_experts))
  print(f'written to {path}')


if __name__ == '__main__':
  cli.run(main, memory=host_memory.TRAINING)
