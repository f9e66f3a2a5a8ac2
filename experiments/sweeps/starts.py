"""Whether runs can start from what they name, told before that is trained.

Imports jax, which knows the shapes of parameters; starts no device.
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
  """UserError, one line that names the run, for the first that its start will not fit."""
  for job in jobs:
    try:
      _check(job)
    except UserError as error:
      raise UserError(f'{job.label}: {error}') from error


def _check(job):
  # Shapes are the same on every platform, and this one is asked for no device.
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
  """As launch.convert makes it: without what only the run that starts from it has."""
  train = dataclasses.replace(config.train, init_from='')
  finetune = dataclasses.replace(config.finetune, trainable='all', experts='')
  return dataclasses.replace(config, train=train, finetune=finetune)
