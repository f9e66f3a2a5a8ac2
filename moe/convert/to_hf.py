"""A run's checkpoint into a folder that Hugging Face's tools and servers open."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from etils import epath

from moe import files
from moe.config import Config, from_stored
from moe.convert import parameters, safetensors, table, tokenizers
from moe.convert.hf_config import TOKEN_IDS
from moe.convert.layouts import LAYOUTS, name_for
from moe.convert.outputs import appearing, new_folder
from moe.data.progress import Progress
from moe.data.tokenizers import from_bytes
from moe.errors import UserError
from moe.run import find_step, folder
from moe.storage import provenance, small_items
from moe.storage.reading import attempt

_SHARD = 5_000_000_000  # bytes
_TYPES = {dtype.name: name for name, dtype in safetensors.DTYPES.items()}


class Written(NamedTuple):
  """What has been made."""

  config: Config
  layout: str
  step: int
  tensors: int
  bytes: int
  files: int


def to_hf(
  workdir: str | Path, out: str | Path, step: int | None = None, dtype: str | None = None
) -> Written:
  """Makes the folder `out` of a run's newest checkpoint, or of a given step.

  Args:
    dtype: 'bfloat16' or 'float32', of the tensors; without it, as the parameters are stored.

  UserError for what the layout cannot express, or a damaged checkpoint; then there is no `out`.
  """
  target = new_folder('out', out)
  if '://' in str(workdir):
    raise UserError(f'--workdir={workdir} must be a folder of this machine, or mounted there')
  step = find_step(workdir, step)
  path = epath.Path(folder(workdir)) / 'checkpoints' / str(step)
  small, fault = attempt(lambda: small_items.read(path))
  if fault:
    raise UserError(f'{path} is unreadable: {fault}')
  config = from_stored(small.config, f'{path}/config')
  layout = name_for(config)
  values = LAYOUTS[layout].to_json(config)
  placed = table.place(next(iter(LAYOUTS[layout].tables(config).values())), config, layout)
  stored, fault = attempt(lambda: _open(Path(path), placed))
  if fault:
    raise UserError(f'{path} is unreadable: {fault}')
  types = {
    each.name: np.dtype(dtype or stored[each.name].array.dtype.numpy_dtype) for each in placed
  }
  shards = safetensors.plan(
    table.tensor_shapes(placed),
    {name: _TYPES[types[each.name].name] for each in placed for name, _ in each.tensors()},
    _SHARD,
  )
  size = sum(shard.size for shard in shards)
  tokenizer = from_bytes(small.tokenizer, small.tokenizer_config) if small.tokenizer else None
  with appearing(target, size) as beside:
    with Progress('writing', size) as progress, safetensors.Writer(beside, shards) as writer:
      sums = _write(placed, stored, types, writer, progress)
      _check(path, sums, small.checksums['params'])
    files.replace(
      beside / safetensors.INDEX, files.to_json(safetensors.index(shards), indent=2) + '\n'
    )
    ids = _token_ids(folder(workdir)) | tokenizers.write(tokenizer, beside)
    values |= ids | {'torch_dtype': types['embedding'].name}
    files.replace(beside / 'config.json', files.to_json(values, indent=2) + '\n')
  tensors = sum(len(shard.spans) for shard in shards)
  return Written(config, layout, step, tensors, size, len(shards))


def _open(path, placed):
  """{name: Stored}. ValueError where a shape is not the config's,
  or the type none that is written.
  """
  stored = {each.name: parameters.open_stored(path, each.name) for each in placed}
  for each in placed:
    array = stored[each.name].array
    if tuple(array.shape) != each.shape:
      raise ValueError(f'{each.name} has the shape {tuple(array.shape)}, not {each.shape}')
    if array.dtype.name not in _TYPES:
      raise ValueError(f'{each.name} is of type {array.dtype.name}')
  return stored


def _write(placed, stored, types, writer, progress):
  """Writes all tensors; the parameters' checksums, of what was read."""

  def write(each, array, box):
    content = each.in_file_order(array[box]).read(order='C').result()
    part = parameters.checksum(each, content, box)
    matrices = content.reshape(each.box_in_file(box)).astype(types[each.name], copy=False)
    for piece in each.pieces(box):
      width = each.matrix[1]
      writer.write(
        piece.tensor, piece.rows.start, piece.columns.start, width, matrices[piece.index]
      )
    return each.name, part, matrices.nbytes

  work = [
    (write, each, stored[each.name].array, box)
    for each in placed
    for box in parameters.boxes(
      each, stored[each.name].chunks, stored[each.name].array.dtype.numpy_dtype.itemsize
    )
  ]
  sums: dict[str, int] = {}
  for name, part, size in parameters.run(work):
    key = parameters.keystr(name)
    sums[key] = (sums.get(key, 0) + part) % 2**32
    progress.add(size)
  return sums


def _check(path, sums, expected):
  """UserError unless what was read is what the run has saved."""
  if different := [name for name, value in sums.items() if expected.get(name) != value]:
    raise UserError(
      f'{path} is damaged: the bytes of {different[0]} are not those that were saved; '
      f'give another --step'
    )


def _token_ids(workdir):
  """Those of the config.json that a run was converted from."""
  try:
    parts = files.read_json_list(Path(workdir) / provenance.FILE)
  except (OSError, ValueError):
    return {}
  origins = [part['converted_from'] for part in parts if 'converted_from' in part]
  values = origins[0].get('config', {}) if origins else {}
  return {key: values[key] for key in TOKEN_IDS if key in values}
