"""What a sweep shows, on a terminal and in a log."""

import json

from rich.console import Console

from experiments.studies.common import Run
from experiments.sweeps import plan, view
from experiments.sweeps.local import Task


def _tasks(folder):
  runs = [
    Run(f'run {count}', 'tests/launch/runs/config.py', {'moe.num_experts': count})
    for count in range(2, 42)
  ]
  tasks = [
    Task(job)
    for job in plan.jobs(plan.Study('study.py', lambda scale: runs), None, [0], {}, folder)
  ]
  tasks[0].state, tasks[30].state, tasks[31].state = 'finished', 'training', 'failed'
  return tasks


def _log(task, *lines):
  task.job.workdir.mkdir(parents=True)
  (task.job.workdir / 'metrics.jsonl').write_text(''.join(lines))


def test_a_table_shows_first_what_happens(tmp_path):
  tasks = _tasks(tmp_path)
  _log(
    tasks[30],
    json.dumps({'step': 10, 'loss': 2.5, 'tokens_per_second': 64.0}) + '\n',
    '{"step": 11, "lo',
  )
  text = _printed(view.View(tasks))
  assert len(text.splitlines()) <= Console(width=100).height
  (row,) = (line for line in text.splitlines() if 'run 32' in line)
  # 30 steps of 4 × 32 tokens.
  assert all(cell in row for cell in ('training', '10/40', '2.5000', '1:00'))
  assert 'run 33' in text and 'failed' in text
  assert '1 training, 1 failed, 37 waiting, 1 finished' in text


def test_a_log_gets_a_line_now_and_then(tmp_path, capsys, monkeypatch):
  tasks = _tasks(tmp_path)
  shown = view.View(tasks)
  shown.show()
  assert capsys.readouterr().out == ''
  monkeypatch.setattr(view, '_BETWEEN_LINES', 0.0)
  shown = view.View(tasks)
  shown.show()
  assert capsys.readouterr().out == 'run 32, seed 0: step 0/40\n'
  _log(tasks[30], '{"step": 3, "los')  # cut short: being written
  shown.show()
  assert capsys.readouterr().out == 'run 32, seed 0: step 0/40\n'
  (tasks[30].job.workdir / 'metrics.jsonl').write_text(
    '{"step": 20, "loss": null, "tokens_per_second": 128.0}\n'
  )
  shown.show()
  assert capsys.readouterr().out == 'run 32, seed 0: step 20/40, loss not finite, 0:20 left\n'


def test_before_its_first_step_a_run_says_what_it_is_doing(tmp_path, capsys, monkeypatch):
  tasks = _tasks(tmp_path)
  monkeypatch.setattr(view, '_BETWEEN_LINES', 0.0)
  monkeypatch.setattr(view.time, 'monotonic', lambda: 1065.0)
  tasks[30].since = 1000.0
  _log(tasks[30])
  before = (
    '$ python -m launch.train\ncompiled the training step in 15 s\n$ python -m launch.train\n'
  )
  tasks[30].log.write_text(before)
  shown = view.View(tasks)
  shown.show()
  assert capsys.readouterr().out == 'run 32, seed 0: starting and compiling, 1:05 so far\n'
  assert 'compiling, 1:05' in _printed(shown)
  tasks[30].log.write_text(f'{before}compiled the training step in 9 s\n')
  shown.show()
  assert capsys.readouterr().out == 'run 32, seed 0: step 0/40\n'
  assert 'compiling' not in _printed(shown)


def test_a_name_with_brackets_is_shown_as_it_is(tmp_path):
  runs = [Run('[red]a[/b]', 'tests/launch/runs/config.py')]
  (job,) = plan.jobs(plan.Study('study.py', lambda scale: runs), None, [0], {}, tmp_path)
  assert '[red]a[/b]' in _printed(view.View([Task(job)]))


def _printed(shown):
  console = Console(width=100)
  with console.capture() as printed:
    console.print(shown._table())
  return printed.get()
