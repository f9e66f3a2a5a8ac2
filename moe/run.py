"""A run's folder: opened to train in, and its trained model opened for programs and notebooks.

DIR/config.json  provenance.json  metrics.jsonl  held_out_losses.json  tokenizer.model
DIR/tensorboard/  checkpoints/
DIR/data/        prepared data, unless data.dir says where
DIR/unreadable/  damaged checkpoints, set aside
DIR/.lock        who trains in it
"""

import dataclasses
import os
import re
from pathlib import Path
from typing import NamedTuple

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from moe import files
from moe.config import Config, OpsConfig, from_stored
from moe.data.tokenizer import Tokenizer
from moe.errors import UserError
from moe.model import Transformer, init_params
from moe.parallel import processes
from moe.storage import checksums, must_stay, small_items
from moe.storage.reading import attempt, available_steps, read_items

_FOLDERS = ('checkpoints', 'tensorboard', 'unreadable')
_FILES = (
  *('config.json', 'metrics.jsonl', 'tokenizer.model', 'held_out_losses.json'),
  *('provenance.json', '.lock'),
)
# Patterns to what reads checkpoints, and their escape.
_PATTERNS = re.compile(r'[][*?\\]')


class Run(NamedTuple):
  """A trained model opened for use: `model.apply({'params': params}, …)`."""

  model: Transformer
  params: dict
  tokenizer: Tokenizer
  config: Config
  step: int


def load_run(workdir: str | os.PathLike, step: int | None = None) -> Run:
  """Opens the newest readable checkpoint of a run, or a given step:
  model, params, tokenizer, config, step.

  Reads parameters only, onto this process's default device, whatever devices wrote them. `workdir`
  may be in a bucket (gs://BUCKET/DIR); nothing in it is changed. UserError if there is no
  checkpoint, or not of the step, or unreadable.
  """
  given, workdir = workdir, folder(workdir)
  directory = workdir / 'checkpoints'
  steps, fault = attempt(lambda: available_steps(workdir))
  if fault:
    raise UserError(f'cannot list {directory}: {fault}')
  if not steps:
    raise UserError(f'no checkpoint in {directory}: train with --workdir={given} first')
  if step is not None and step not in steps:
    raise UserError(
      f'no checkpoint of step {step} in {directory}; there are {", ".join(map(str, steps))}'
    )
  for candidate in [step] if step is not None else reversed(steps):
    run, fault = attempt(lambda candidate=candidate: _load(directory, candidate))
    if not fault:
      return run
    message = f'checkpoint step {candidate} in {directory} is unreadable: {fault}'
    if step is not None:
      raise UserError(message)
    logging.error('%s', message)
  raise UserError(f'no checkpoint in {directory} can be read (steps {", ".join(map(str, steps))})')


def folder(workdir: str | os.PathLike) -> epath.Path:
  """The path of a run's folder as its user has written it.
  UserError for a name that checkpoints cannot be under.
  """
  written = os.fspath(workdir)
  if '://' in written:
    return epath.Path(written)
  if not written.strip():
    raise UserError(f'--workdir must name a folder, not {written!r}')
  path = Path(written).expanduser()
  # Steps back, over links too, mean to the system what they do not mean to
  # libraries that shorten paths.
  path = path.resolve() if '..' in path.parts else path.absolute()
  if not str(path).isprintable():
    raise UserError(f'--workdir={written!r}: its name must be printable UTF-8 on one line')
  if found := _PATTERNS.search(str(path)):
    raise UserError(
      f'--workdir={written}: {found[0]!r} in {str(path)!r} is a pattern to the libraries that read '
      'checkpoints: choose another name, or give a link to it'
    )
  return epath.Path(path)


def check_workdir(workdir: str | os.PathLike) -> None:
  """Makes the folder; UserError unless it can be written and its parts are files and
  folders as they should be.
  """
  workdir = Path(folder(workdir))
  if workdir.exists() and not workdir.is_dir():
    raise UserError(f'{workdir}: File exists: --workdir must be a folder')
  for name in _FILES:
    files.must_be_file(workdir / name)
  for name in _FOLDERS:
    files.must_be_folder(workdir / name)
  if processes.is_main():
    files.try_folder(workdir, 'the run')
    for name in _FOLDERS:
      if (workdir / name).is_dir():
        files.try_folder(workdir / name, 'the run')


def open_workdir(config: Config, workdir: str | os.PathLike) -> None:
  """Makes the folder and its config.json; UserError with the differing keys if it
  holds a run of another config.

  A run that never logged a step, because its corpus was not found, say, is no run yet:
  its config may be mended.
  """
  workdir = Path(folder(workdir))
  check_workdir(workdir)
  begun = (workdir / 'metrics.jsonl').exists() or bool(available_steps(workdir))
  if begun:
    _check_config(config, workdir)
  if processes.is_main():
    files.replace(workdir / 'config.json', files.to_json(config.to_dict(), indent=2) + '\n')


def data_directory(config: Config, workdir: str | os.PathLike) -> epath.Path:
  """Where a run's prepared data lies. `workdir` may be in a bucket, to be read: gs://BUCKET/DIR."""
  return epath.Path(config.data.dir) if config.data.dir else epath.Path(folder(workdir)) / 'data'


def _check_config(config, workdir):
  """UserError if config.json, or the newest checkpoint's own config, is of another run."""
  path = workdir / 'config.json'
  step, own = _newest_items(workdir)
  compared = own is None or own.text is not None
  stored = []
  if path.exists():
    try:
      stored.append((files.read_json(path), str(path)))
    except ValueError as error:
      advice = 'delete it: the checkpoints have their own' if own else 'or use another --workdir'
      raise UserError(f'{path} is not JSON of a config ({error}): restore it, {advice}') from error
  if own:
    stored.append((own.config, f'{workdir}/checkpoints/{step}/config'))
  for old, where in stored:
    if changed := must_stay.config_changes(from_stored(old, where), config, compared):
      raise UserError(
        f'{workdir} holds a run of another config: {changed}; '
        'use another --workdir, or those values'
      )


def _newest_items(workdir):
  """(step, its small items) of the newest checkpoint whose own can be read;
  (0, None) without one.
  """
  for step in reversed(available_steps(workdir)):
    path = epath.Path(workdir) / 'checkpoints' / str(step)
    items, fault = attempt(lambda path=path: small_items.read(path))
    if not fault:
      return step, items
  return 0, None


def _load(directory, step):
  path = directory / str(step)
  small = small_items.read(path)
  # The run's kernels need not exist on this machine.
  config = from_stored(small.config, f'{path}/config')
  config = dataclasses.replace(config, ops=OpsConfig('auto'))
  shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
  device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), shapes)
  params = read_items(path, params=ocp.args.StandardRestore(params))['params']
  if fault := checksums.difference(params, small.checksums['params']):
    raise ValueError(fault)
  tokenizer = Tokenizer.from_bytes(small.tokenizer)
  if not small.checked:
    logging.error(
      'checkpoint step %d in %s is of an older version: its config and tokenizer have no checksums',
      step,
      directory,
    )
  return Run(Transformer(config), params, tokenizer, config, step)
