"""A run's folder: opened to train in, and its trained model opened for programs and notebooks.

DIR/config.json  provenance.json  metrics.jsonl  held_out_losses.json  tensorboard/  checkpoints/
DIR/tokenizer.model, or tokenizer.json and its tokenizer_config.json
DIR/data/        prepared data, unless data.dir names another folder
DIR/unreadable/  damaged checkpoints, set aside
DIR/evaluations.jsonl  benchmark scores
DIR/.lock        who trains in it
"""

import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path

import jax
from absl import logging
from etils import epath
from jax.sharding import Mesh

from moe import files
from moe.config import FEW_BITS, STORED_TYPES, Config, MeshConfig, OpsConfig, from_stored
from moe.data.tokenizers import FILES
from moe.errors import UserError
from moe.finetune.adapters import merged
from moe.inspection import Run
from moe.model import Transformer
from moe.parallel import mesh as mesh_lib
from moe.parallel import processes
from moe.parameters import init, shardings
from moe.quantize import quantized
from moe.storage import arrays, checksums, must_stay, small_items
from moe.storage.reading import attempt, available_steps

_FOLDERS = ('checkpoints', 'tensorboard', 'unreadable')
_FILES = (
  *('config.json', 'metrics.jsonl', 'held_out_losses.json', 'provenance.json', '.lock'),
  'evaluations.jsonl',
  *FILES,
)
# Characters that the libraries that read checkpoints take for patterns, and their escape.
_PATTERNS = re.compile(r'[][*?\\]')


def load_run(
  workdir: str | os.PathLike,
  step: int | None = None,
  dtype: str | None = None,
  mesh: Mesh | Mapping[str, int] | None = None,
) -> Run:
  """Opens the newest readable checkpoint of a run, or a given step.
  `moe.inspection.Run` says what can be asked of it.

  Reads parameters only, whatever devices wrote them; adapters are merged into their matrices.
  `workdir` may be in a bucket (gs://BUCKET/DIR); nothing in it is changed. UserError if there is
  no checkpoint, or none of the step, or if it is unreadable.

  Args:
    dtype: one of `moe.config.STORED_TYPES`, for the parameters in memory; int8 and int4 apply to
      matrices (`moe.quantize`). None: as stored.
    mesh: where the parameters lie; each process reads what its devices hold.
      A mesh of `moe.parallel.mesh`, or the sizes of its axes, {'expert': 8}, the others 1.
      On several devices, apply `run.model` inside `run.on_mesh()`.
      None: this process's default device.
  """
  if dtype is not None and dtype not in STORED_TYPES:
    raise UserError(f'dtype={dtype!r} must be one of {", ".join(STORED_TYPES)}, or None: as stored')
  steps, directory = _steps(workdir, step), folder(workdir) / 'checkpoints'
  for candidate in [step] if step is not None else reversed(steps):
    run, fault = attempt(lambda candidate=candidate: _load(directory, candidate, dtype, mesh))
    if not fault:
      return run
    message = f'checkpoint step {candidate} in {directory} is unreadable: {fault}'
    if step is not None:
      raise UserError(message)
    logging.error('%s', message)
  raise UserError(f'no checkpoint in {directory} can be read (steps {", ".join(map(str, steps))})')


def find_step(workdir: str | os.PathLike, step: int | None = None) -> int:
  """The newest checkpoint's step, or `step` itself. UserError if there is none."""
  steps = _steps(workdir, step)
  return steps[-1] if step is None else step


def folder(workdir: str | os.PathLike, flag: str = '--workdir') -> epath.Path:
  """The path of a run's folder, from what the user wrote.
  UserError for a name that checkpoints cannot be under. `flag`: the flag that the error names.
  """
  written = os.fspath(workdir)
  if '://' in written:
    return epath.Path(written)
  if not written.strip():
    raise UserError(f'{flag} must name a folder, not {written!r}')
  path = Path(written).expanduser()
  # '..' after a link means one folder to the system and another to libraries that
  # shorten paths.
  path = path.resolve() if '..' in path.parts else path.absolute()
  if not str(path).isprintable():
    raise UserError(f'{flag}={written!r}: its name must be printable UTF-8 on one line')
  if found := _PATTERNS.search(str(path)):
    raise UserError(
      f'{flag}={written}: {found[0]!r} in {str(path)!r} is a pattern to the libraries that read '
      'checkpoints: choose another name, or give a link to it'
    )
  return epath.Path(path)


def check_workdir(workdir: str | os.PathLike) -> None:
  """Makes the folder. UserError unless it can be written and its parts are files and
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
  """Makes the folder and its config.json. UserError with the differing keys if it
  holds a run of another config.

  A run that never logged a step, for example because its corpus was not found, does not count:
  its config may still change.
  """
  workdir = Path(folder(workdir))
  check_workdir(workdir)
  begun = (workdir / 'metrics.jsonl').exists() or bool(available_steps(workdir))
  if begun:
    _check_config(config, workdir)
  if processes.is_main():
    files.replace(workdir / 'config.json', files.to_json(config.to_dict(), indent=2) + '\n')


def data_directory(config: Config, workdir: str | os.PathLike) -> epath.Path:
  """Where a run's prepared data lies. To read it, `workdir` may be in a bucket: gs://BUCKET/DIR."""
  return epath.Path(config.data.dir) if config.data.dir else epath.Path(folder(workdir)) / 'data'


def _steps(workdir, step):
  """The steps with a checkpoint, ascending. UserError if there is none, or `step` has none."""
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
  return steps


def _check_config(config, workdir):
  """Raises UserError if config.json or the newest checkpoint's own config is of another run,
  or if that checkpoint holds weights only.
  """
  path = workdir / 'config.json'
  step, own = small_items.newest(workdir)
  if own:
    must_stay.check_can_go_on(own.has_training, f'{workdir}/checkpoints/{step}')
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


def _load(directory, step, dtype, mesh):
  path = directory / str(step)
  small = small_items.read(path)
  # The kernels that the run chose may not exist on this machine.
  config = from_stored(small.config, f'{path}/config')
  config = dataclasses.replace(config, ops=OpsConfig('auto'))
  if isinstance(mesh, Mapping):
    config = dataclasses.replace(config, mesh=MeshConfig(**{'data': 1, **mesh}))
    mesh = mesh_lib.make_mesh(config)
  shapes = jax.eval_shape(lambda: init(config, jax.random.key(0)))
  if mesh is None:
    device = _device_to_quantize_on() if dtype in FEW_BITS else jax.local_devices()[0]
    where = jax.tree.map(lambda _: jax.sharding.SingleDeviceSharding(device), shapes)
  else:
    where = shardings(config, mesh, shapes)
  params = arrays.read(path, 'params', shapes, where)
  if fault := checksums.difference(params, small.checksums['params']):
    raise ValueError(fault)
  params = merged(config, params)
  if dtype in FEW_BITS:
    params = quantized(config, params, dtype, mesh)
    if mesh is None:
      params = jax.device_put(params, jax.local_devices()[0])
  elif dtype:
    params = arrays.cast(params, dtype)
  if not small.checked:
    logging.error(
      'checkpoint step %d in %s is of an older version: its config and tokenizer have no checksums',
      step,
      directory,
    )
  return Run(Transformer(config), params, small.open_tokenizer(), config, step, mesh)


def _device_to_quantize_on():
  """The host's CPU where JAX has it: unquantized parameters may not fit on an accelerator."""
  try:
    return jax.local_devices(backend='cpu')[0]
  except RuntimeError:  # JAX_PLATFORMS names accelerators alone
    return jax.local_devices()[0]
