"""Runs a study: every run for every seed, one line each in experiments/results/STUDY/runs.jsonl.

  python -m launch.sweep --sweep=experiments/studies/table1.py [--seeds=3] [--launcher=local|slurm] [--dry_run]
    [--runs=NAME,NAME] [--scale=proxy|long|paper] [--parallel=1]
    [--workdir=runs/studies] [--results=experiments/results] [--config.KEY=VALUE …]

The same command again skips what is finished, goes on with what was interrupted and tries again what failed; a run
that has diverged is finished. Ctrl-C or SIGTERM lets the run at hand save. A config that several studies share is
trained once: where a line of another study in --results is of the same settings, seed and text, that is taken.
--config.KEY=VALUE changes every run; --scale=paper needs --config.data.sources. Under Slurm a job array trains the
runs; --collect then scores those that are trained and writes their lines.
"""

import math
import shlex
from pathlib import Path

from absl import flags

from experiments import base
from experiments.studies import common
from experiments.sweeps import children, ledger, line, local, plan, shares, slurm, view
from moe import cli
from moe import config as moe_config
from moe.errors import UserError

SWEEP = flags.DEFINE_string('sweep', None, 'The study: a file with sweep().', required=True)
SEEDS = flags.DEFINE_integer(
  'seeds', common.SEEDS, 'How many: 0, 1, … Each sets train.seed and data.seed.'
)
RUNS = flags.DEFINE_list('runs', [], 'Only these runs of the study, by name; all unless given.')
LAUNCHER = flags.DEFINE_enum(
  'launcher', 'local', ['local', 'slurm'], 'This machine, or a job array.'
)
DRY_RUN = flags.DEFINE_bool(
  'dry_run', False, 'Print the commands and what is finished; start and write nothing.'
)
COLLECT = flags.DEFINE_bool(
  'collect', False, 'Train nothing: score what is trained and write its lines.'
)
SCALE = flags.DEFINE_enum(
  'scale',
  'proxy',
  list(common.SCALES),
  "For a CPU, small and long for a CPU, or the paper's own size.",
)
PARALLEL = flags.DEFINE_integer(
  'parallel',
  1,
  'Runs at a time, with --launcher=local: each on cores, and NVIDIA GPUs, of its own.',
)
WORKDIR = flags.DEFINE_string('workdir', 'runs/studies', 'Folder of all runs of all studies.')
RESULTS = flags.DEFINE_string('results', 'experiments/results', 'Where STUDY/runs.jsonl lies.')
SBATCH = flags.DEFINE_multi_string(
  'sbatch', [], 'An option for sbatch, such as --sbatch=--time=24:00:00; several.'
)
CONFIG = cli.config_flag()


def main(_):
  if SEEDS.value < 1:
    raise UserError(f'--seeds must be at least 1, not {SEEDS.value}')
  if PARALLEL.value < 1:
    raise UserError(f'--parallel must be at least 1, not {PARALLEL.value}')
  study, runs_folder = plan.load(SWEEP.value), Path(WORKDIR.value)
  scale, overrides = common.SCALES[SCALE.value], cli.overrides(CONFIG)
  every = plan.jobs(study, scale, range(SEEDS.value), overrides, runs_folder)
  jobs = plan.named(study, every, RUNS.value) if RUNS.value else every
  _require_text(scale, jobs, overrides)
  parts = shares.deal(PARALLEL.value)
  results = ledger.path(Path(RESULTS.value), study.name)
  lines = ledger.read(results)
  tasks = [local.Task(job, 'waiting' if ledger.missing(job, lines) else 'finished') for job in jobs]
  differs = _differs(every)  # so that a line does not depend on --runs
  untrained = [task for task in tasks if task.state == 'waiting' and not task.job.ended]
  others = ledger.of_other_studies(Path(RESULTS.value), study.name) if untrained else []

  def recorded(job):
    """The lines that a job lacks, from other studies, if these have all of them; [] otherwise."""
    found = [
      line.taken(others, study.name, run, job, differs) for run in ledger.missing(job, lines)
    ]
    return found if all(found) else []

  if DRY_RUN.value:
    _print_plan(tasks, recorded)
    return 0

  def finish(job):
    made = [line.make(study.name, run, job, SCALE.value, differs) for run in job.runs]
    for each in made:
      ledger.put(results, each)
    loss = made[0]['final']['total']['loss']
    return f'held-out loss {loss:.4f}' if math.isfinite(loss) else 'diverged'

  with children.sole_sweep(runs_folder) as lock, children.Children(lock) as started:
    if not COLLECT.value:
      slurm.refuse_while_queued(runs_folder)
      local.prepare(
        [task.job for task in untrained], runs_folder, started, lambda text: print(text, flush=True)
      )
    for task in untrained:
      if taken := recorded(task.job):
        for each in taken:
          ledger.put(results, each)
        task.state, task.new = 'finished', True
        print(f'{task.job.label}: recorded by another study, which is not repeated', flush=True)
    untrained = [task for task in untrained if task.state == 'waiting']
    if COLLECT.value:
      for task in untrained:
        task.state, task.note = 'stopped', 'not trained yet'
    elif LAUNCHER.value == 'slurm' and untrained and not started.stopped_by:
      number = slurm.submit(study.name, [task.job for task in untrained], runs_folder, SBATCH.value)
      print(
        f'job array {number} trains {len(untrained)} runs. Then, on a machine that may compute, --collect scores'
      )
      print('them and writes their lines; this command again submits what has not finished')
      return 0
    with view.View(tasks) as shown:
      local.run(tasks, parts, started, finish, shown)
    return _summary(tasks, results, started.stopped_by)


def _require_text(scale, jobs, overrides):
  """100 billion tokens of the small built-in corpus are nothing to train on unasked."""
  builtin = any(job.config.data.sources == 'builtin' for job in jobs)
  if scale is common.PAPER and builtin and 'data.sources' not in overrides:
    raise UserError(
      "--scale=paper needs text of your own, such as --config.data.sources='english=/data/en/*.jsonl.gz;"
      "code=/data/src/**/*.py': the built-in corpus, which data.sources=builtin would repeat, is a few megabytes"
    )


def _differs(jobs):
  """The keys that decide a run and are not the same in all."""
  flat = [moe_config.flatten(job.config.to_dict()) for job in jobs]
  return [
    key
    for key in flat[0]
    if plan.decides(key)
    and key not in plan.SEEDS
    and any(config[key] != flat[0][key] for config in flat)
  ]


def _print_plan(tasks, recorded):
  taken = 0
  for task in tasks:
    job, state = task.job, task.state
    if state == 'waiting' and not job.ended and recorded(job):
      print(f'# {job.label}: recorded by another study')  # nothing to start
      taken += 1
      continue
    if state == 'waiting':
      reached = [logged['step'] for logged in job.metrics()]
      state = f'interrupted at step {reached[-1]} of {job.num_steps}' if reached else 'not started'
      state = 'trained, to be scored' if job.trained else 'diverged' if job.diverged else state
    print(f'# {job.label}: {state}\npython {shlex.join(job.arguments("train"))}')
  finished = sum(task.state == 'finished' for task in tasks)
  of_others = f', {taken} recorded by other studies' if taken else ''
  print(
    f'# {len(tasks)} runs, {finished} finished{of_others}, {len(tasks) - finished - taken} to do'
  )


def _summary(tasks, results, stopped_by):
  """Tells how each ended. Returns the exit code: 0 if all are finished, 1 if one is not, 128 + a signal."""
  finished = [task for task in tasks if task.state == 'finished']
  before = sum(not task.new for task in finished)
  print(
    f'{len(finished)} of {len(tasks)} runs finished{f" ({before} before)" if before else ""}: {results}'
  )
  for task in tasks:
    if task.state == 'failed':
      print(f'failed: {task.job.label}: {task.note} ({task.log})')
    elif task.state == 'stopped' and task.note:
      print(f'not finished: {task.job.label}: {task.note}')
  if stopped_by:
    print(f'stopped by {stopped_by.name}; the same command goes on')
    return 128 + stopped_by
  return 0 if len(finished) == len(tasks) else 1


if __name__ == '__main__':
  cli.run(main, config_file=base.__file__)
