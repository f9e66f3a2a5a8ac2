"""A checkpoint that a run starts from, and what of it the run takes."""

import os
import re
from collections.abc import Set
from typing import NamedTuple

import jax
from absl import logging
from etils import epath

from moe.config import Config
from moe.finetune import adapters
from moe.parallel import processes
from moe.parameters import declared_by_path
from moe.storage import checksums, partial, provenance, small_items
from moe.storage.partial import Name
from moe.train_step import TrainState

# DIR, DIR:STEP, or DIR: if DIR itself ends in a colon and a number.
_SPEC = re.compile(r'(.*?)(?::(\d*))?', re.DOTALL)


class Source(NamedTuple):
  """A checkpoint to start from, whose parts fit the run that is to start."""

  directory: epath.Path  # of the run, absolute
  step: int
  small: small_items.SmallItems
  stored: dict[Name, jax.ShapeDtypeStruct]  # its model's parameters
  config: Config  # of the source's run; says how adapters are merged into the parameters
  new: frozenset[Name]  # parameters of the run that are initialised anew

  @property
  def identity(self) -> dict:
    """How provenance.json and results identify it."""
    return identity_of(self.directory, self.step, self.small)

  @property
  def path(self) -> epath.Path:
    return self.directory / 'checkpoints' / str(self.step)

  def __str__(self) -> str:
    return provenance.source_in_words(self.identity)


def parse(spec: str) -> tuple[str, int | None]:
  """'DIR' → (DIR, None), 'DIR:STEP' → (DIR, STEP), 'DIR:' → (DIR, None).

  What follows the last ':' is a step if it is digits; everything else belongs to the folder's
  name, such as gs://BUCKET/DIR. The file system is not asked.
  """
  directory, step = _SPEC.fullmatch(spec).groups()
  return directory, int(step) if step else None


def identity_of(directory: epath.Path, step: int, small: small_items.SmallItems) -> dict:
  """The identity of a checkpoint: {'path': its run's folder, 'step', 'checksum': over the checksums
  of all that it holds}. A copy has the same checksum.
  """
  return {
    'path': os.fspath(directory),
    'step': step,
    'checksum': f'{checksums.of_json(small.checksums):08x}',
  }


def leaves_taken(
  shapes: TrainState, new: Set[Name], init_optimizer: bool
) -> dict[str, dict[Name, jax.ShapeDtypeStruct]]:
  """The leaves of a TrainState that the source provides, by item of its checkpoint. The moments of
  a new parameter are new, too.
  """
  taken = {'params': {}, 'training': {}}
  for name, x in partial.named(shapes).items():
    is_new = any(name[i:] in new for i in range(len(name)))
    if name[0] == 'params' and not is_new:
      taken['params'][name[1:]] = x
    elif name[0] == 'optimizer_state' and init_optimizer and not is_new:
      taken['training'][name] = x
  return taken


def parameters(config: Config) -> dict[Name, jax.ShapeDtypeStruct]:
  """Shapes and types of a config's parameters by name."""
  return {name: box.value for name, box in declared_by_path(config).items()}


def adapters_of(config: Config) -> set[Name]:
  """The names of the adapters of a config's model."""
  return set(adapters.declared(config, declared_by_path(config)))


def of_the_vocabulary(config: Config) -> set[Name]:
  """The names of the parameters that have a row or column for each token of the vocabulary."""
  return {name for name, box in declared_by_path(config).items() if 'vocab' in box.axes}


def is_of_any_vocabulary(config: Config, new: Set[Name]) -> bool:
  """Whether no parameter taken from the source depends on what a token's id means."""
  return of_the_vocabulary(config) <= new


def in_path(name: Name) -> str:
  """The name as train.init_skip and messages write it."""
  return '/'.join(name)


def log_error(message: str) -> None:
  """Logs an error once, however many processes there are."""
  if processes.is_main():
    logging.error('%s', message)
