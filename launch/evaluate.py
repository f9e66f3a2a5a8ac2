"""Held-out loss and bits per byte of a run, by domain.

  python -m launch.evaluate --workdir=DIR [--step=N] [--format=json]

Scores every held-out document, each token once, beside gzip -9 and xz -9 on the same bytes. JSON
has the rows in 'domains', the last of which is over all of them; that one is in 'total', too.
"""

from absl import flags

from moe import cli, host_memory

WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run.', required=True)
STEP = flags.DEFINE_integer('step', None, 'Checkpoint to score; the newest without it.')
FORMAT = cli.format_flag()


def main(_):
  from moe import evaluate, files
  from moe.data.store import open_held_out
  from moe.run import data_directory, load_run
  from moe.storage import provenance

  run, source = load_run(WORKDIR.value, STEP.value), provenance.source(WORKDIR.value)
  data = open_held_out(data_directory(run.config, WORKDIR.value), run.tokenizer)
  rows = evaluate.report(evaluate.Evaluator(run.config, data)(run.params), data)
  if FORMAT.value == 'json':
    total = list(rows.values())[-1]
    told = {'step': run.step, 'init_from': source, 'domains': rows, 'total': total}
    print(files.to_json(told, indent=2))
  else:
    begun = f'\nwarm start from {provenance.source_in_words(source)}' if source else ''
    print(f'{run.config.name}, step {run.step}{begun}\n{evaluate.table(rows)}')


if __name__ == '__main__':
  cli.run(main, memory=host_memory.TRAINING)
