"""Runs jobs on this machine: trains each, scores it, writes its line,
and goes on with the next if one fails.
"""

import dataclasses
import json
import subprocess
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from experiments.studies import common
from experiments.sweeps import machine, plan
from experiments.sweeps.children import Children, last_words
from experiments.sweeps.shares import WHOLE, Share
from experiments.sweeps.view import View
from moe.errors import UserError

_POLL = 0.2  # seconds
_AT_WORK = ('preparing', 'training', 'scoring')  # the states in which a task has a process


@dataclasses.dataclass(eq=False)
class Task:
  """A job on its way: waiting → (preparing →) training → scoring → finished, or failed, or
  stopped. Preparing makes what it needs of the run that it starts from.
  """

  job: plan.Job
  state: str = 'waiting'
  note: str = ''
  process: subprocess.Popen | None = None
  share: Share = WHOLE
  new: bool = False  # whether this sweep has done something for it
  since: float = 0.0  # time.monotonic() when its process was started
  prepared_by: str = ''  # the program that was last started to prepare it

  @property
  def log(self) -> Path:
    return self.job.workdir / 'log.txt'


def prepare(
  jobs: Sequence[plan.Job], runs_folder: Path, children: Children, say: Callable[[str], None]
) -> None:
  """Builds the data that jobs lack, each once. UserError if it cannot be built."""
  for corpus in plan.corpora_needed(jobs):
    command = ('-m', *common.CORPORA[corpus], f'--out={corpus}')
    hint = f'; `python {" ".join(command)}` builds it'
    if corpus == common.CORPUS:
      hint += ', --config.data.sources=builtin needs none'
    say(f'building the corpus {corpus} (once; log: {runs_folder / "corpus.log"})')
    _to_the_end(command, runs_folder / 'corpus.log', children, hint)
  log = runs_folder / 'prepare_data.log'
  for job in {job.data_dir: job for job in jobs if not plan.prepared(job)}.values():
    if not children.stopped_by:
      say(f'preparing data in {job.data_dir} (once; log: {log})')
      _to_the_end(job.arguments('prepare_data'), log, children)


def prepare_starts(jobs: Sequence[plan.Job], children: Children) -> None:
  """Makes what jobs need of the trained runs that they start from. UserError if that fails."""
  for job in jobs:
    for program in job.preparations:
      if not children.stopped_by:
        _to_the_end(job.arguments(program), job.workdir / 'log.txt', children)


def run(
  tasks: Sequence[Task],
  shares: Sequence[Share],
  children: Children,
  finish: Callable[[plan.Job], str],
  view: View,
) -> None:
  """Brings every waiting task to its end, one at a time on each share of the machine. `finish`
  writes a job's lines and returns its loss in words.
  """
  waiting, running, free = (
    deque(task for task in tasks if task.state == 'waiting'),
    [],
    deque(shares),
  )
  while running or (waiting and not children.stopped_by):
    while waiting and free and not children.stopped_by:
      task = next((task for task in waiting if task.job.is_ready), None)
      if task is None:
        break
      waiting.remove(task)
      task.share = free.popleft()
      running.append(task)
      _advance(task, children, finish, view)
    for task in running:
      if task.state in _AT_WORK and task.process.poll() is not None:
        _advance(task, children, finish, view)
    free.extend(task.share for task in running if task.state not in _AT_WORK)
    running = [task for task in running if task.state in _AT_WORK]
    if not running and not any(task.job.is_ready for task in waiting):
      while waiting and not children.stopped_by:
        _give_up(waiting.popleft(), view)
    view.show()
    time.sleep(_POLL)


def score_arguments(job: plan.Job) -> list[str]:
  """What follows `python` to score a trained job, with the evaluations of all its runs."""
  interventions = [
    dict(intervention) for run in job.runs for intervention in run.evaluations.values()
  ]
  measures = dict.fromkeys(name for run in job.runs for name in run.measures)
  return [
    '-m',
    'experiments.sweeps.score',
    f'--workdir={job.workdir}',
    f'--interventions={json.dumps(interventions)}',
    *([f'--measures={",".join(measures)}'] if measures else []),
    *([f'--start={job.origin.workdir}'] if job.is_transfer else []),
  ]


def _give_up(task, view):
  """Fails a task whose origin has not been trained, and is not going to be."""
  task.state, task.new = 'failed', True
  task.note = f'it starts from {task.job.origin.job.label}, which has not been trained'
  view.changed(task)


def _advance(task, children, finish, view):
  """Takes a task, whose process, if it had one, has ended, to its next state."""
  job, process = task.job, task.process
  task.new = True
  try:
    if process and children.stopped_by:
      task.state = 'stopped'
    elif not job.trained and job.diverged:
      # Divergence is a result like any other, which no second try would change.
      task.state, task.note = 'finished', finish(job)
    elif process and process.returncode:
      task.state, task.note = 'failed', f'exit code {process.returncode}: {last_words(task.log)}'
    elif task.state == 'training' and not job.trained:
      task.state, task.note = 'stopped', 'by a signal from elsewhere'
    elif task.state == 'scoring':
      task.state, task.note = 'finished', finish(job)
    elif job.trained:
      task.state, task.process = (
        'scoring',
        children.start(score_arguments(job), task.log, task.share),
      )
    elif preparations := job.preparations:
      program = preparations[0]
      if program == task.prepared_by:
        raise UserError(f'launch.{program} succeeded but did not write its output: {task.log}')
      task.state, task.prepared_by = 'preparing', program
      task.process = children.start(job.arguments(program), task.log, task.share)
    else:
      task.state, task.since = 'training', time.monotonic()
      machine.note_commit(job.workdir, machine.commit())
      task.process = children.start(job.arguments('train'), task.log, task.share)
  except (OSError, UserError) as error:
    task.state, task.note = 'failed', str(error)
  except Exception as error:  # whatever this run's files hold, the others go on
    task.state, task.note = 'failed', f'{type(error).__name__}: {error}'
  view.changed(task)


def _to_the_end(arguments, log, children, hint=''):
  process = children.start(arguments, log)
  if process.wait() and not children.stopped_by:
    raise UserError(f'{last_words(log).removeprefix("error: ")} ({log}){hint}')
