"""Runs a study: every run for every seed, one line each in experiments/results/STUDY/runs.jsonl.

  python -m launch.sweep --sweep=experiments/studies/table1.py [--seeds=3] [--dry_run]
    [--launcher=local|slurm|gke] [--runs=NAME,NAME] [--scale=long|proxy|paper] [--parallel=1]
    [--retrain] [--workdir=runs/studies] [--results=experiments/results] [--config.KEY=VALUE …]

The same command again skips finished runs, resumes interrupted ones and retries failed ones; a run
that has diverged is finished. Ctrl-C or SIGTERM lets the current run save. A config that several
studies share is trained once: a line of another study in --results is reused if its settings, seed
and text are the same. Results of other code are reported; --retrain trains them anew.
--config.KEY=VALUE changes every run; --scale=paper needs --config.data.sources. Under Slurm one job
array trains the runs, on GKE one JobSet a run, made from --manifest. --collect then scores the
trained runs and writes their lines; --watch --collect waits for the JobSets first.
"""

from pathlib import Path

from absl import flags

from experiments import base
from experiments.studies import common
from experiments.sweeps import sweep
from moe import cli

_DEFAULT = sweep.Options('')
SWEEP = flags.DEFINE_string(
  'sweep', None, 'The study: a file with sweep(), or the name of one of ours.', required=True
)
SEEDS = flags.DEFINE_integer(
  'seeds',
  _DEFAULT.seeds,
  "How many seeds: 0, 1, … Each sets train.seed and data.seed. By default the study's own number.",
)
RUNS = flags.DEFINE_list('runs', [], 'Only these runs of the study, by name; by default all.')
LAUNCHER = flags.DEFINE_enum(
  'launcher', _DEFAULT.launcher, ['local', 'slurm', 'gke'], 'This machine, a job array, JobSets.'
)
DRY_RUN = flags.DEFINE_bool('dry_run', False, 'Print commands and what is finished; start nothing.')
COLLECT = flags.DEFINE_bool('collect', False, 'Train nothing: score trained runs, write lines.')
RETRAIN = flags.DEFINE_bool('retrain', False, 'Train anew the runs that other code has trained.')
SCALE = flags.DEFINE_enum(
  'scale', None, list(common.SCALES), "Size of all runs; by default the study's own."
)
PARALLEL = flags.DEFINE_integer(
  'parallel', 1, 'With --launcher=local: runs at a time, each on cores of its own.'
)
WORKDIR = flags.DEFINE_string('workdir', str(_DEFAULT.workdir), 'Folder of all runs.')
RESULTS = flags.DEFINE_string('results', str(_DEFAULT.results), 'Folder of STUDY/runs.jsonl.')
SBATCH = flags.DEFINE_multi_string('sbatch', [], 'Option for sbatch, as --time=1:00; repeatable.')
MANIFEST = flags.DEFINE_string(
  'manifest', _DEFAULT.manifest, 'For gke: the filled-in manifest of a JobSet.'
)
WATCH = flags.DEFINE_bool('watch', False, 'First wait until no JobSet of --workdir is at work.')
CONFIG = cli.config_flag()


def main(_):
  return sweep.run(
    sweep.Options(
      study=SWEEP.value,
      **{flag.name: flag.value for flag in (SEEDS, RUNS, LAUNCHER, DRY_RUN, COLLECT, RETRAIN)},
      **{flag.name: flag.value for flag in (SCALE, PARALLEL, SBATCH, MANIFEST, WATCH)},
      **{flag.name: Path(flag.value) for flag in (WORKDIR, RESULTS)},
      overrides=cli.overrides(CONFIG),
    )
  )


if __name__ == '__main__':
  cli.run(main, config_file=base.__file__)
