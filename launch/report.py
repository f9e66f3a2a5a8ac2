"""Draws studies from their runs: RESULTS/STUDY/README.md and figure.svg,
and one page, RESULTS/index.html.

  python -m launch.report [--results=experiments/results] [--verdicts=FILE,FILE]  # `make report`
  python -m launch.report --sweep=my_study.py [--results=DIR]   # one study, by its file

Reports every study that the folder has lines of, yours and ours alike; a folder with a runs.jsonl
of its own is one study. A study without analyse() gets a table: loss with its interval, the
difference from the first run within seeds, MaxVio, parameters. The output depends on the studies
and their runs.jsonl alone: it has no date, no font and needs no plotting library. A study of the
paper that lacks runs is reported as undecided, with what is missing.
"""

from pathlib import Path

from absl import flags

from experiments.reports import page
from moe import cli
from moe.errors import UserError

RESULTS = flags.DEFINE_string(
  'results', 'experiments/results', 'Folder of STUDY/runs.jsonl, which the report is written to.'
)
SWEEP = flags.DEFINE_string(
  'sweep', '', 'Only this study: a file with sweep(), or the name of one of ours.'
)
VERDICTS = flags.DEFINE_list(
  'verdicts',
  [],
  "Files to write verdicts into, between their marks: on the paper's studies, or those they name.",
)


def main(_):
  results = Path(RESULTS.value)
  if SWEEP.value and VERDICTS.value:
    raise UserError('--verdicts covers all studies: leave out --sweep')
  if SWEEP.value:
    made = page.of_file(SWEEP.value, results)
  else:
    made = page.of_folder(results, [Path(file) for file in VERDICTS.value])
  page.write(made)
  print(f'drawn: {next(iter(made))}')


if __name__ == '__main__':
  cli.run(main)
