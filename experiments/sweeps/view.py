"""Shows a sweep: a live table on a terminal, a line now and then in a log."""

import json
import sys
import time
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

_BETWEEN_LINES = 30.0  # seconds, in a log
_FRAME = 6  # lines of the table that show no run, and the line below it
_TAIL = 1 << 16  # bytes: more than a line of metrics.jsonl
# What experiments.sweeps.children writes into a log before a program's own lines.
_STARTED = b'$ python '
_COMPILED = b'compiled the training step'  # what moe.train says
_STYLES = {
  'preparing': 'cyan',
  'training': 'cyan',
  'scoring': 'cyan',
  'finished': 'green',
  'failed': 'red',
  'stopped': 'yellow',
}


class View:
  """Shows tasks (experiments.sweeps.local.Task) within its `with`."""

  def __init__(self, tasks):
    self._tasks, self._console = tasks, Console()
    self._live = Live(console=self._console, auto_refresh=False) if sys.stdout.isatty() else None
    self._next_line = time.monotonic() + _BETWEEN_LINES

  def __enter__(self):
    if self._live:
      self._live.start()
    return self

  def __exit__(self, *unused):
    if self._live:
      self.show()
      self._live.stop()

  def say(self, line: str) -> None:
    if self._live:
      self._console.print(line, markup=False, highlight=False)
    else:
      print(line, flush=True)

  def changed(self, task) -> None:
    """Says that a task's state has changed. In a log only: the table shows it by itself."""
    if not self._live:
      log = f' (log: {task.log})' if task.state == 'training' else ''
      self.say(f'{task.job.label}: {task.state}{f", {task.note}" if task.note else ""}{log}')

  def show(self) -> None:
    """Updates the table, or writes the lines of a log when they are due; to be called often."""
    if self._live:
      self._live.update(self._table(), refresh=True)
    elif time.monotonic() >= self._next_line:
      self._next_line = time.monotonic() + _BETWEEN_LINES
      for task in self._tasks:
        if _is_compiling(task):
          self.say(f'{task.job.label}: starting and compiling, {_so_far(task)} so far')
        elif task.state == 'training':
          step, loss, left = _progress(task)
          self.say(
            f'{task.job.label}: step {step}{loss and f", loss {loss}"}{left and f", {left} left"}'
          )

  def _table(self):
    table = Table('run', 'seed', 'state', 'step', 'loss', 'time left')
    # What is happening comes first; of the rest, as much as the terminal has lines for.
    order = ('training', 'preparing', 'scoring', 'failed', 'stopped', 'waiting', 'finished')
    room = max(self._console.height - _FRAME, 3)
    shown = sorted(self._tasks, key=lambda task: order.index(task.state))[:room]
    for task in (task for task in self._tasks if task in shown):
      step, loss, left = _progress(task)
      step = f'compiling, {_so_far(task)}' if _is_compiling(task) else step
      # Text, not str: rich would take brackets in a name for markup.
      names = Text(' = '.join(run.name for run in task.job.runs))
      state = Text(task.state, style=_STYLES.get(task.state, 'dim'))
      table.add_row(names, str(task.job.seed), state, step, loss, left)
    count = {state: sum(task.state == state for task in self._tasks) for state in order}
    return Group(table, ', '.join(f'{number} {state}' for state, number in count.items() if number))


def _is_compiling(task) -> bool:
  """Whether a training run has not compiled its step since it was started."""
  if task.state != 'training':
    return False
  _, started, since = _tail(task.log).rpartition(_STARTED)
  return bool(started) and _COMPILED not in since


def _so_far(task) -> str:
  return duration(time.monotonic() - task.since)


def _progress(task) -> tuple[str, str, str]:
  """(step, loss, time left) of a task, as far as they are known."""
  job, logged = task.job, _last_line(task.job.workdir / 'metrics.jsonl')
  if not logged:
    return f'0/{job.num_steps}', '', ''
  left = ''
  if task.state == 'training' and logged.get('tokens_per_second'):
    tokens = (job.num_steps - logged['step']) * job.config.data.batch_size * job.config.data.seq_len
    left = duration(tokens / logged['tokens_per_second'])
  loss = f'{logged["loss"]:.4f}' if logged['loss'] is not None else 'not finite'
  return f'{logged["step"]}/{job.num_steps}', loss, left


def _last_line(path: Path) -> dict:
  """The last complete line of a metrics.jsonl, which may be long and still being written;
  {} if there is none.
  """
  whole, _, _ = _tail(path).rpartition(b'\n')
  try:
    logged = json.loads(whole.rpartition(b'\n')[2] or b'{}')
  except ValueError:
    return {}
  return logged if isinstance(logged, dict) and {'step', 'loss'} <= logged.keys() else {}


def _tail(path: Path) -> bytes:
  """The end of a file, or all of it if it is short; b'' if it cannot be read."""
  try:
    with path.open('rb') as file:
      file.seek(max(0, path.stat().st_size - _TAIL))
      return file.read()
  except OSError:
    return b''


def duration(seconds: float) -> str:
  """3725 → '1:02:05'."""
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours}:{minutes:02}:{seconds:02}' if hours else f'{minutes}:{seconds:02}'
