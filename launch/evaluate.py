"""Held-out loss and bits per byte of a run, by domain.

  python -m launch.evaluate --workdir=DIR [--step=N] [--format=json]
    [--sources='DOMAIN=FILES;…' --save_routing=FILE.parquet]

Scores every held-out document, each token once, beside gzip -9 and xz -9 on the same bytes. JSON
has the rows in 'domains', the last of which is over all of them; that one is in 'total', too.
--sources scores all documents of given files instead, as data.sources names them; 'trained_on'
counts by domain those that the run was trained on, null where its data is not there.
--save_routing writes what every token that is scored chose in every MoE layer, and its loss.
$DATA is the folder of the run's prepared data, if that is not where training read it.
"""

import os

from absl import flags

from moe import cli, host_memory

WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run.', required=True)
STEP = flags.DEFINE_integer('step', None, 'Checkpoint to score; the newest without it.')
SOURCES = flags.DEFINE_string('sources', None, 'Text to score, as data.sources names it.')
SAVE_ROUTING = flags.DEFINE_string(
  'save_routing', None, 'Parquet file to write: one row a held-out token and MoE layer.'
)
FORMAT = cli.format_flag()


def main(_):
  from moe import evaluate, files
  from moe.data import given, prepare, store
  from moe.inspection.table import check_target
  from moe.run import data_directory, load_run
  from moe.storage import provenance

  if SAVE_ROUTING.value is not None:
    check_target(SAVE_ROUTING.value)
  run, source = load_run(WORKDIR.value, STEP.value), provenance.source(WORKDIR.value)
  directory = os.environ.get('DATA') or data_directory(run.config, WORKDIR.value)
  title, trained_on = 'held-out text', {}
  if SOURCES.value is None:
    data = store.open_held_out(directory, run.tokenizer)
  else:
    title, data = 'text', given.open_given(SOURCES.value, run.config.data, run.tokenizer)
    trained_on['trained_on'], notes = given.trained_on(data, directory)
    prepare.tell(notes)
  saved = run.save_routing(data, SAVE_ROUTING.value) if SAVE_ROUTING.value is not None else None
  rows = evaluate.report(evaluate.Evaluator(run.config, data)(run.params), data)
  if FORMAT.value == 'json':
    total = list(rows.values())[-1]
    told = {'step': run.step, 'init_from': source, 'domains': rows, 'total': total, **trained_on}
    told |= {} if saved is None else {'routing_rows': saved}
    print(files.to_json(told, indent=2))
  else:
    begun = f'\nwarm start from {provenance.source_in_words(source)}' if source else ''
    print(f'{run.config.name}, step {run.step}{begun}\n{evaluate.table(rows, title)}')
    if saved is not None:
      print(f'routing: {saved:,} rows in {SAVE_ROUTING.value}')


if __name__ == '__main__':
  cli.run(main, memory=host_memory.TRAINING)
