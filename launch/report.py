"""Draws every study from its runs: RESULTS/STUDY/README.md and figure.svg, and one page, RESULTS/index.html.

  python -m launch.report [--results=experiments/results]                                 # or `make report`

The bytes depend on the studies and on RESULTS/STUDY/runs.jsonl alone: no date, no font, no plotting library. A study
whose runs are not all there is reported as undecided, with what is missing.
"""

from pathlib import Path

from absl import flags

from experiments.reports import page
from moe import cli
from moe.errors import UserError

RESULTS = flags.DEFINE_string(
  'results', 'experiments/results', 'Where STUDY/runs.jsonl lies, and the report goes.'
)


def main(_):
  results = Path(RESULTS.value)
  if not results.is_dir():
    raise UserError(
      f'there is no folder {results} (--results): launch.sweep makes it, with STUDY/runs.jsonl in it'
    )
  for path, content in page.files(results).items():
    if content is None:
      path.unlink(missing_ok=True)
    else:
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_text(content, encoding='utf-8')
  print(f'drawn: {results / "index.html"}')


if __name__ == '__main__':
  cli.run(main)
