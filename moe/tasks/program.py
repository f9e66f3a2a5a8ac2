"""`python -m launch.evaluate --tasks=…`."""

import os
from pathlib import Path

from moe import files
from moe.config import mesh_sizes
from moe.run import folder, load_run
from moe.tasks import report
from moe.tasks.suite import Asked, open_suite


def run_tasks(
  workdir: str | os.PathLike,
  step: int | None,
  asked: Asked,
  mesh: str,
  as_json: bool,
  dtype: str | None = None,
) -> str:
  """Scores a run, adds a line to its evaluations.jsonl and returns the text to print.

  mesh: the mesh for its parameters, 'fsdp=2,expert=4'; '' is one device. dtype: of its parameters,
  as `load_run` takes it. UserError for what `open_suite` and `Suite.score` refuse. A run in a
  bucket is only read: no line is added.
  """
  sizes = mesh_sizes(mesh)
  suite = open_suite(asked)
  run = load_run(workdir, step, dtype, sizes)
  results = suite.score(run)
  line = report.record(run, asked, results) | {'dtype': dtype}
  if '://' not in os.fspath(workdir):
    report.append(Path(folder(workdir)), line)
  if as_json:
    return files.to_json(line, indent=2)
  return f'{run.config.name}, step {run.step}\n{report.table(run, results)}'
