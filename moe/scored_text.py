"""`python -m launch.evaluate` without tasks: scores a run's held-out text, or other text."""

import os

from moe import evaluate, files
from moe.data import given, prepare, store
from moe.inspection.table import check_target
from moe.run import data_directory, load_run
from moe.storage import provenance


def score_text(
  workdir: str,
  step: int | None,
  sources: str | None = None,
  save_routing: str | None = None,
  as_json: bool = False,
  dtype: str | None = None,
) -> str:
  """The scores of a run's held-out text, or of `sources`, as text or JSON to be printed.

  sources: written as data.sources is. save_routing: a Parquet file to write. dtype: of the
  parameters, as in `load_run`. $DATA is the folder of the run's prepared data, if that is not where
  training read it. Raises the UserErrors of what it calls.
  """
  if save_routing is not None:
    check_target(save_routing)
  run, source = load_run(workdir, step, dtype), provenance.source(workdir)
  directory = os.environ.get('DATA') or data_directory(run.config, workdir)
  title, trained_on = 'held-out text', {}
  if sources is None:
    data = store.open_held_out(directory, run.tokenizer)
  else:
    title, data = 'text', given.open_given(sources, run.config.data, run.tokenizer)
    trained_on['trained_on'], notes = given.trained_on(data, directory)
    prepare.tell(notes)
  saved = run.save_routing(data, save_routing) if save_routing is not None else None
  rows = evaluate.report(evaluate.Evaluator(run.config, data)(run.params), data)
  if as_json:
    total = list(rows.values())[-1]
    told = {'step': run.step, 'init_from': source, 'domains': rows, 'total': total, **trained_on}
    return files.to_json(told | ({} if saved is None else {'routing_rows': saved}), indent=2)
  begun = f'\nwarm start from {provenance.source_in_words(source)}' if source else ''
  routing = '' if saved is None else f'\nrouting: {saved:,} rows in {save_routing}'
  return f'{run.config.name}, step {run.step}{begun}\n{evaluate.table(rows, title)}{routing}'
