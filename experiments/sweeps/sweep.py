"""Takes a study from its jobs to its lines: skips what is finished,
takes what other studies have recorded, runs the rest.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from experiments.studies import common
from experiments.sweeps import (
  children,
  gke,
  ledger,
  line,
  local,
  machine,
  plan,
  shares,
  slurm,
  view,
)
from moe.errors import UserError


@dataclasses.dataclass(frozen=True)
class Options:
  """The flags of launch.sweep, which explains them.
  `overrides`: changes to every run's config, by dotted key.
  """

  study: str
  seeds: int | None = None  # None: the study's own
  runs: Sequence[str] = ()
  scale: str = ''  # '': the study's own
  launcher: str = 'local'
  parallel: int = 1
  dry_run: bool = False
  collect: bool = False
  retrain: bool = False
  workdir: Path = Path('runs/studies')
  results: Path = Path('experiments/results')
  sbatch: Sequence[str] = ()
  manifest: str = gke.MANIFEST
  watch: bool = False
  overrides: Mapping[str, object] = dataclasses.field(default_factory=dict)


def run(options: Options) -> int:
  """Runs the study, or says what would run. Returns the exit code: 0 if all runs are finished or
  submitted, 1 if one is not, 128 + a signal. UserError before anything runs if a run could not.
  """
  study = plan.load(options.study)
  options = dataclasses.replace(options, scale=options.scale or study.scale)
  sweep = _Sweep(options, study, *_jobs(options, study))
  if options.dry_run:
    sweep.tell_plan()
    return 0
  ledger.try_writing(sweep.file)
  with children.sole_sweep(options.workdir) as lock, children.Children(lock) as started:
    return sweep.run(started)


def _jobs(options, study):
  """(jobs to run, keys that differ between runs). The keys are those of the whole study,
  so that a line does not depend on --runs.
  """
  for flag in ('seeds', 'parallel'):
    value = getattr(options, flag)
    if value is not None and value < 1:
      raise UserError(f'--{flag} must be at least 1, not {value}')
  for flag, launcher, is_given in (
    ('watch', 'gke', options.watch),
    ('manifest', 'gke', options.manifest != gke.MANIFEST),
    ('sbatch', 'slurm', options.sbatch),
    # With --collect, how many of the runs that a cluster has trained are scored here at a time.
    ('parallel', 'local', options.parallel > 1 and not options.collect),
  ):
    if is_given and options.launcher != launcher:
      raise UserError(
        f'--{flag} means nothing to --launcher={options.launcher}: add --launcher={launcher}, or '
        'leave it out'
      )
  scale = common.SCALES[options.scale]
  seeds = range(options.seeds) if options.seeds else study.seeds_at(scale)
  every = plan.jobs(study, scale, seeds, options.overrides, options.workdir)
  jobs = plan.named(study, every, options.runs) if options.runs else every
  _require_text(scale, jobs, options.overrides)
  return jobs, _differs(every)


class _Sweep:
  """The jobs of a study as tasks, and the lines that they have already."""

  def __init__(self, options: Options, study: plan.Study, jobs: Sequence[plan.Job], differs):
    self._options, self._study, self._differs = options, study, differs
    self._parts = shares.deal(options.parallel)
    self._commit = machine.commit()
    if options.retrain and not machine.is_certain(self._commit):
      raise UserError(
        f'--retrain cannot tell which results are of this code, whose commit is {self._commit}: '
        'commit what has changed, and run it from the git checkout'
      )
    self.file = ledger.path(options.results, study.name)
    self._lines = ledger.read(self.file)
    self._tasks = [
      local.Task(job, 'waiting' if self._lacks_a_line(job) else 'finished') for job in jobs
    ]
    self._needed: set[Path] = set()  # of runs whose weights others start from
    self._untrained = [
      task for task in self._tasks if task.state == 'waiting' and not self._is_trained(task.job)
    ]
    self._train_origins()
    self._check_starts()
    self._others = ledger.of_other_studies(options.results, study.name) if self._untrained else []

  def run(self, started: children.Children) -> int:
    options = self._options
    self._tell_other_code(_say)
    if options.watch:
      gke.watch(options.workdir, _say)
    if not options.collect:
      slurm.refuse_while_queued(options.workdir)
      if options.launcher == 'gke':
        gke.check(options.workdir, options.manifest)
        gke.refuse_while_queued(options.workdir)
      if options.launcher == 'slurm':
        slurm.check()
      local.prepare([task.job for task in self._untrained], options.workdir, started, _say)
    self._take_recorded()
    untrained = [task for task in self._untrained if task.state == 'waiting']
    for task in untrained if options.collect else []:
      task.state, task.note = 'stopped', 'not trained yet'
    if options.retrain and not options.collect:
      for task in untrained:
        self._set_aside(task.job)
    if options.launcher != 'local' and untrained and not (options.collect or started.stopped_by):
      jobs = [task.job for task in untrained if task.job.is_ready]
      local.prepare_starts(jobs, started)
      train = self._submit(jobs)
      others = len(untrained) - len(jobs)
      start_later = f' {others} more start from these: this command again submits them.'
      _say(
        f'{train} {len(jobs)} runs.{start_later * bool(others)} '
        'Then, on a machine that may compute, --collect scores\n'
        'them and writes their lines; this command again submits what has not finished'
      )
      return 0
    with view.View(self._tasks) as shown:
      local.run(self._tasks, self._parts, started, self._finish, shown)
    return _summary(self._tasks, self.file, started.stopped_by)

  def _submit(self, jobs):
    options, study = self._options, self._study.name
    if options.launcher == 'gke':
      return gke.submit(study, jobs, options.workdir, options.manifest)
    return f'job array {slurm.submit(study, jobs, options.workdir, options.sbatch)} trains'

  def tell_plan(self) -> None:
    """Prints the commands, and what is finished; starts and writes nothing."""
    self._tell_other_code(lambda text: _say(f'# {text}'))
    taken = 0
    for task in self._tasks:
      if task in self._untrained and self._recorded(task.job):
        _say(f'# {task.job.label}: recorded by another study')  # nothing to start
        taken += 1
      else:
        state = self._how_far(task.job) if task.state == 'waiting' else task.state
        programs = [*task.job.preparations, 'train']
        commands = [f'python {slurm.quoted(task.job.arguments(each))}' for each in programs]
        _say('\n'.join([f'# {task.job.label}: {state}', *commands]))
    finished, count = sum(task.state == 'finished' for task in self._tasks), len(self._tasks)
    of_others = f', {taken} recorded by other studies' if taken else ''
    _say(f'# {count} runs, {finished} finished{of_others}, {count - finished - taken} to do')

  def _train_origins(self):
    """Trains what untrained runs start from, too, even if its lines are there already."""
    by_workdir = {task.job.workdir: task for task in self._tasks}
    waiting = list(self._untrained)
    while waiting:
      job = waiting.pop().job
      if job.is_ready:
        continue
      origin = by_workdir.get(job.origin.workdir)
      if origin is None:
        raise UserError(
          f'{job.label} starts from {job.origin.job.label}, which is not trained: '
          'name it in --runs, too'
        )
      self._needed.add(job.origin.workdir)
      if origin not in self._untrained:
        origin.state = 'waiting'
        self._untrained.append(origin)
        waiting.append(origin)

  def _check_starts(self):
    """UserError if a run does not fit a start that is not trained yet. If its start is trained, the
    run itself tells as soon as it begins.
    """
    waiting = [task.job for task in self._untrained if not task.job.is_ready]
    if waiting:
      from experiments.sweeps import starts

      starts.check(waiting)

  def _how_far(self, job):
    if self._options.retrain and not self._is_trained(job):
      return 'to be trained anew'
    try:
      logged = job.metrics()
    except UserError as error:
      return str(error)
    if job.trained or job.diverged:
      return 'trained, to be scored' if job.trained else 'diverged'
    if logged:
      return f'interrupted at step {logged[-1]["step"]} of {job.num_steps}'
    return 'not started'

  def _lacks_a_line(self, job):
    if ledger.missing(job, self._lines):
      return True
    return self._options.retrain and not machine.is_of(self._commits(job), self._commit)

  def _is_trained(self, job):
    """Whether there is nothing more to train; with --retrain, whether this code has trained it."""
    of_this_code = machine.is_of(machine.commits(job.workdir), self._commit)
    return job.ended and (of_this_code or not self._options.retrain)

  def _commits(self, job):
    """The commits of the lines that a job has."""
    keys = [(each.name, job.seed, job.config_hash) for each in job.runs]
    return _commits_of([self._lines[key] for key in keys if key in self._lines])

  def _tell_other_code(self, say: Callable[[str], None]) -> None:
    finished = [task for task in self._tasks if task.state == 'finished']
    commits = [self._commits(task.job) for task in finished]
    others = [each for each in commits if not machine.is_of(each, self._commit)]
    if others:
      names = ', '.join(map(_short, sorted(set().union(*others))))
      say(
        f'{len(others)} of {len(finished)} finished runs are of other code ({names}) than this '
        f'({_short(self._commit)}), or of unknown code: --retrain trains these anew'
      )

  def _recorded(self, job):
    """The lines that a job lacks, made from other studies' if these have them all; else []."""
    if job.workdir in self._needed:
      return []
    lacking = job.runs if self._options.retrain else ledger.missing(job, self._lines)
    others = self._others
    if self._options.retrain:
      others = [each for each in others if machine.is_of(_commits_of([each]), self._commit)]
    found = [line.taken(others, self._study.name, each, job, self._differs) for each in lacking]
    return found if all(found) else []

  def _take_recorded(self):
    for task in self._untrained:
      if taken := self._recorded(task.job):
        for each in taken:
          ledger.put(self.file, each)
        task.state, task.new = 'finished', True
        commits = _commits_of(taken)
        other = '' if machine.is_of(commits, self._commit) else ', with other code than this'
        _say(
          f'{task.job.label}: recorded by another study, which is not repeated '
          f'(commit {", ".join(map(_short, sorted(commits)))}{other})'
        )

  def _set_aside(self, job):
    """Renames the folder that other code has left of a run, so that nothing of it is lost."""
    commits = machine.commits(job.workdir)
    if job.workdir.exists() and not machine.is_of(commits, self._commit):
      name = f'{job.workdir.name}-{(commits or ["unknown"])[-1][:12]}'
      taken = sum(1 for _ in job.workdir.parent.glob(f'{name}*'))
      to = job.workdir.with_name(f'{name}-{taken}' if taken else name)
      job.workdir.rename(to)
      _say(f'{job.label}: what other code has left is now in {to}')

  def _finish(self, job):
    """Writes a job's lines. Returns its loss, in words."""
    options = self._options
    made = [
      line.make(self._study.name, each, job, options.scale, self._differs) for each in job.runs
    ]
    for each in made:
      ledger.put(self.file, each)
    loss = made[0]['final']['total']['loss']
    return f'held-out loss {loss:.4f}' if math.isfinite(loss) else 'diverged'


def _say(text):
  print(text, flush=True)


def _commits_of(lines):
  return {commit for each in lines for commit in each.get('commit', 'unknown').split(', ')}


def _short(commit):
  return commit[:12] + ('-dirty' if commit.endswith('-dirty') else '')


def _require_text(scale, jobs, overrides):
  """UserError for 100 billion tokens of the small built-in corpus, unless they are asked for."""
  builtin = any(job.config.data.sources == 'builtin' for job in jobs)
  if scale is common.PAPER and builtin and 'data.sources' not in overrides:
    raise UserError(
      '--scale=paper needs text of your own, such as '
      "--config.data.sources='english=/data/en/*.jsonl.gz;code=/data/src/**/*.py': the built-in "
      'corpus, which data.sources=builtin would repeat, is a few megabytes'
    )


def _differs(jobs):
  """The keys that decide a run's result and are not the same in all jobs, seeds apart."""
  flat = [job.values for job in jobs]
  return [
    key
    for key in flat[0]
    if plan.affects_result(key)
    and key not in plan.SEEDS
    and any(config[key] != flat[0][key] for config in flat)
  ]


def _summary(tasks, results, stopped_by):
  """Prints how the tasks ended. Returns the exit code: 0 if all are finished, 1 if one is not,
  128 + a signal.
  """
  finished = [task for task in tasks if task.state == 'finished']
  before = sum(not task.new for task in finished)
  _say(
    f'{len(finished)} of {len(tasks)} runs '
    f'finished{f" ({before} before)" if before else ""}: {results}'
  )
  for task in tasks:
    if task.state == 'failed':
      _say(f'failed: {task.job.label}: {task.note} ({task.log})')
    elif task.state == 'stopped' and task.note:
      _say(f'not finished: {task.job.label}: {task.note}')
  if stopped_by:
    _say(f'stopped by {stopped_by.name}; the same command goes on')
    return 128 + stopped_by
  return 0 if len(finished) == len(tasks) else 1
