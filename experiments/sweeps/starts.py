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
  for job in jobs:
    try:
      _check(job)
    except UserError as error:
      raise UserError(f'{job.label}: {error}') from error


def _check(job):
  # Shapes are the same on every platform; with one named, jax is not asked for a device.
  ours, theirs = (
    dataclasses.replace(config, ops=OpsConfig('auto'))
    for config in (job.config, job.origin.job.config)
  )
  where = f'the run {job.origin.job.label}'
  with compiling_for('cpu'):
    if job.origin.upcycle:
      made = _plain(ours)
      upcycle.check(theirs, made, where)
      theirs, where = made, f'what is made of {where}'
    fitting.check(ours, theirs, where)


def _plain(config: Config) -> Config:
  """The config that launch.convert makes: without what only the run that starts from it has."""
  train = dataclasses.replace(config.train, init_from='')
  finetune = dataclasses.replace(config.finetune, trainable='all', experts='')
  return dataclasses.replace(config, train=train, finetune=finetune)
