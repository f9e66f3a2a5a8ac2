"""Which checkpoint a run starts from, and with whose tokenizer."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path

from etils import epath

from moe import files
from moe.config import Config
from moe.data.tokenizers import Tokenizer
from moe.errors import UserError
from moe.parallel import processes
from moe.run import folder
from moe.storage import must_stay, partial, provenance, small_items
from moe.storage.reading import attempt, available_steps
from moe.warm_start.fitting import fitting
from moe.warm_start.source import Source, identity_of, is_of_any_vocabulary, log_error, parse


def find(config: Config, workdir: Path | None = None) -> Source | None:
  """The checkpoint that a run of this config in `workdir` is to start from.

  None without `train.init_from`, and for a run that has checkpoints of its own, which needs none.
  Reads no array. UserError, one line, if there is no such checkpoint or it does not fit.
  """
  if not config.train.init_from or (workdir and available_steps(workdir)):
    return None
  directory, step = processes.together(lambda: _place(config, workdir))
  return newest(config, directory, step)


def settled(config: Config, workdir: Path) -> Config:
  """The config with the `train.init_from` of the run in `workdir`, if the one given now leads to
  the same checkpoint: the source may have moved since, or been deleted.
  """
  given, stored = config.train.init_from, files.stored_key(workdir, 'train', 'init_from')
  identity = provenance.source(workdir)
  if not given or not stored or not identity or given == stored:
    return config
  same = processes.from_main(int(_leads_to(given, identity)))
  if not same:
    return config
  return dataclasses.replace(config, train=dataclasses.replace(config.train, init_from=stored))


def tokenizer(config: Config, source: Source | None, workdir: Path | None) -> Tokenizer | None:
  """The tokenizer of a warm-started run whose data.tokenizer names none.

  A new run takes the source's, unless every parameter that depends on the vocabulary is new. A run
  that resumes has its own. None: as data.tokenizer says.
  """
  if not config.train.init_from or config.data.tokenizer:
    return None
  if source:
    small = source.small
    if is_of_any_vocabulary(config, source.new) or not small.tokenizer:
      return None
    return small.open_tokenizer()
  _, small = small_items.newest(workdir)
  return small and small.open_tokenizer()


def check_text(config: Config, source: Source | None, text: Mapping) -> None:
  """Raises UserError if the run is to continue the source's text, but has prepared another.
  `text`: `must_stay.text_of` the prepared one.
  """
  if not source or not config.train.init_data or source.small.text is None:
    return
  if changed := must_stay.text_changes(source.small.text, text):
    raise UserError(
      f'train.init_data: {source} was trained on other text: {changed}; bring that text back, or '
      'leave train.init_data out, to begin with the new text'
    )


def newest(
  config: Config, directory: epath.Path, step: int | None, below: int | None = None
) -> Source:
  """The source at `step`; if that is None, at the newest step before `below` that can be read.
  UserError if it cannot be read, or does not fit.
  """
  spec = config.train.init_from
  steps = processes.together(lambda: _steps(spec, directory, step))
  tried = []
  while (
    candidate := processes.from_main(
      max((s for s in steps if s not in tried and (below is None or s < below)), default=-1)
    )
  ) >= 0:
    opened, fault = processes.together(
      lambda candidate=candidate: attempt(lambda: _open(directory, candidate))
    )
    if fault := processes.first_told(fault):
      message = f'train.init_from: step {candidate} in {directory} is unreadable: {fault}'
      if step is not None:
        raise UserError(message)
      log_error(message)
      tried.append(candidate)
      continue
    return processes.together(lambda: fitting(config, directory, candidate, *opened))  # noqa: B023
  raise UserError(
    f'train.init_from={spec}: no checkpoint in {directory} can be read '
    f'(steps {", ".join(map(str, steps))})'
  )


def _place(config, workdir):
  """(the source's folder, the step that is named or None). UserError if there is no such folder, or
  it is this run's own.
  """
  spec = config.train.init_from
  written, step = parse(spec)
  directory = folder(written, 'train.init_from')
  if '://' not in written:
    if not directory.is_dir():
      raise UserError(
        f'train.init_from={spec}: there is no folder {directory}'
        + (f'; a folder of that name is written {spec}:' if step is not None else '')
      )
    if workdir and os.path.realpath(directory) == os.path.realpath(workdir):
      raise UserError(
        f'train.init_from={spec} is this run itself: to go on with it leave that key out, to start '
        'a new one use another --workdir'
      )
    directory = epath.Path(os.path.realpath(directory))
  return directory, step


def _steps(spec, directory, step):
  steps, fault = attempt(lambda: available_steps(directory))
  if fault:
    raise UserError(f'train.init_from={spec}: cannot list {directory}/checkpoints: {fault}')
  if not steps:
    raise UserError(f'train.init_from={spec}: there is no checkpoint in {directory}/checkpoints')
  if step is not None and step not in steps:
    raise UserError(
      f'train.init_from={spec}: no checkpoint of step {step} in {directory}; '
      f'there are {", ".join(map(str, steps))}'
    )
  return [step] if step is not None else steps


def _open(directory, step):
  """(small items, stored parameters, stored arrays of the optimizer and counters)."""
  path = directory / 'checkpoints' / str(step)
  small = small_items.read(path)
  training = partial.stored(path, 'training') if small.has_training else {}
  return small, partial.stored(path, 'params'), training


def _leads_to(spec, identity):
  """Whether a train.init_from leads to the checkpoint with this identity (`provenance.source`)."""
  try:
    written, step = parse(spec)
    directory = folder(written, 'train.init_from')
    if step not in (None, identity['step']):
      return False
    if os.path.realpath(directory) == identity['path']:
      return True
    small = small_items.read(directory / 'checkpoints' / str(identity['step']))
  except Exception:  # there is no such checkpoint
    return False
  return identity_of(directory, identity['step'], small)['checksum'] == identity['checksum']
