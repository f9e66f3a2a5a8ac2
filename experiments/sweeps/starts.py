"""Checks that runs can start from the runs that they name, before these are trained.

Imports jax for the shapes of parameters; starts no device.
"""

import dataclasses
from collections.abc import Iterable

from experiments.sweeps.job import Job
from moe.config import Config, OpsConfig
from moe.convert import upcycle
from moe.errors import UserError
from moe.ops.implementation import compiling_for
from moe.warm_start import fitting


def check(jobs: Iterable[Job]) -> None:
  """UserError, one line that names the run, for the first job that its start will not fit."""
  # All seeds of a run have the same shapes.
  of_runs = {}
  for job in jobs:
    of_runs.setdefault(job.config_hash, job)
  for job in of_runs.values():
    try:
      _check(job)
    except UserError as error:
      raise UserError(f'{job.label}: {error}') from error


def _check(job):
  # Shapes are the same on every platform; with one named, jax is not asked for a device.
  ours, theirs = _any_platform(job.config), _any_platform(job.origin.job.config)
  where = f'the run {job.origin.job.label}'
  with compiling_for('cpu'):
    if job.origin.upcycle:
      made = _any_platform(job.converted_config)
      upcycle.check(theirs, made, where)
      theirs, where = made, f'what is made of {where}'
    fitting.check(ours, theirs, where)


def _any_platform(config: Config) -> Config:
  return dataclasses.replace(config, ops=OpsConfig('auto'))
