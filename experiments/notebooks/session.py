"""What notebooks on a trained run start with: its folder, its held-out text,
and its loss under interventions.
"""

import os
from collections.abc import Hashable, Mapping
from pathlib import Path

from moe.analysis import Intervention, Survey, survey
from moe.data.store import PreparedData, open_held_out
from moe.errors import UserError
from moe.evaluate import Evaluation
from moe.run import Run, data_directory

_ROOT = Path(__file__).parent.parent.parent


def workdir(default: str = 'runs/quickstart') -> str:
  """The run to open: $WORKDIR, or `default`. A folder, relative to the repository's root,
  or gs://BUCKET/DIR.
  """
  return _from_root(os.environ.get('WORKDIR') or default)


def held_out(run: Run, workdir: str) -> PreparedData:
  """The run's held-out text: in $DATA, else where training read it,
  which is WORKDIR/data unless data.dir says otherwise.
  """
  return open_held_out(
    _from_root(os.environ.get('DATA') or data_directory(run.config, workdir)), run.tokenizer
  )


def survey_of(run: Run, data: PreparedData, max_batches: int | None = None) -> Survey | None:
  """The experts that the tokens of the held-out text choose. Prints why and returns None for a
  model without routed experts.
  """
  try:
    return survey(run.config, run.params, data, max_batches=max_batches)
  except UserError as error:
    print(f'Left out: {error}.')


def under(
  run: Run,
  data: PreparedData,
  interventions: Mapping[Hashable, Intervention],
  max_batches: int | None = None,
) -> dict[Hashable, Evaluation]:
  """Held-out loss under each intervention. Prints why and stops at the first one that this model
  cannot do.
  """
  evaluations = {}
  for label, intervention in interventions.items():
    try:
      evaluations[label] = run.intervene(intervention).evaluate(data, max_batches)
    except UserError as error:
      print(f'Left out: {error}.')
      break
  return evaluations


def _from_root(path: str | os.PathLike) -> str:
  return os.fspath(path) if '://' in os.fspath(path) else str(_ROOT / path)
