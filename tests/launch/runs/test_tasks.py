"""Benchmarks scored while a run trains."""

import json

from tests import in_process
from tests.launch.runs import programs
from tests.moe.tasks.asked import write_rows

ROWS = [
  {'goal': f'{number} experts', 'sol1': 'the router', 'sol2': 'one token', 'label': number % 2}
  for number in range(4)
]


def test_scores_are_logged_where_held_out_losses_are(data_flags, tmp_path):
  write_rows(tmp_path, 'piqa', 'validation', ROWS)
  train = (
    *(programs.CONFIG, f'--workdir={tmp_path}/run', *data_flags),
    *('--config.train.num_steps=2', f'--config.evaluation.task_data={tmp_path}'),
    '--config.evaluation.task_limit=3',
  )
  line = in_process.error_line('train', *train, '--config.evaluation.tasks=piqa,winogrande')
  assert 'config.evaluation.tasks: winogrande: no ' in line
  in_process.check('train', *train, '--config.evaluation.tasks=piqa')
  first, last = map(json.loads, (tmp_path / 'run/metrics.jsonl').read_text().splitlines())
  assert 'score_by_task' not in first and 'held_out_loss' in last
  scores = last['score_by_task']
  assert scores.keys() == {'piqa/acc', 'piqa/acc_norm'}
  # Each score is a share of three rows.
  assert all(round(3 * score, 6) in (0, 1, 2, 3) for score in scores.values())
