"""Benchmarks scored while a run trains."""

import json

import pytest

from tests import in_process
from tests.launch.runs import programs
from tests.moe.tasks.asked import write_rows

ROWS = [
  {'goal': f'{number} experts', 'sol1': 'the router', 'sol2': 'one token', 'label': number % 2}
  for number in range(4)
]


def test_scores_are_logged_and_those_of_launch_evaluate(data_flags, tmp_path):
  write_rows(tmp_path, 'piqa', 'validation', ROWS)
  train = (
    *(programs.CONFIG, f'--workdir={tmp_path}/run', *data_flags),
    *('--config.train.num_steps=2', f'--config.evaluation.task_data={tmp_path}'),
    '--config.evaluation.task_limit=3',
  )
  line = in_process.error_line('train', *train, '--config.evaluation.tasks=piqa,winogrande')
  assert 'config.evaluation.tasks: winogrande: no ' in line
  in_process.check('train', *train, '--config.evaluation.tasks=piqa')
  lines = [json.loads(line) for line in (tmp_path / 'run/metrics.jsonl').read_text().splitlines()]
  assert 'score_by_task' not in lines[0]
  asked = (f'--workdir={tmp_path}/run', '--tasks=piqa', f'--task_data={tmp_path}', '--limit=3')
  told = json.loads(in_process.check('evaluate', *asked, '--format=json'))
  metrics = told['tasks']['piqa']['metrics']
  assert lines[-1]['score_by_task'] == pytest.approx(
    {f'piqa/{name}': value for name, value in metrics.items()}
  )
