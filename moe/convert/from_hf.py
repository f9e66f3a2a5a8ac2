"""Imports a Hugging Face checkpoint as a run's folder, which every program and notebook opens."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from moe import config as moe_config
from moe.config import Config
from moe.convert import new_run, safetensors, table, tokenizers
from moe.convert.hf_config import HFConfig
from moe.convert.layouts import LAYOUTS
from moe.convert.outputs import new_folder
from moe.convert.parameters import Source
from moe.convert.table import Placed
from moe.errors import UserError

_TYPES = {np.dtype(dtype).name: dtype for dtype in safetensors.DTYPES.values()}


class Converted(NamedTuple):
  """What `from_hf` has made."""

  config: Config
  tensors: int
  bytes: int
  notes: tuple[str, ...]  # for the user, a line each

  @property
  def in_words(self) -> str:
    return f'{self.tensors:,} tensors, {self.bytes / 1e9:,.2f} GB'


def from_hf(source: str | Path, workdir: str | Path, dtype: str | None = None) -> Converted:
  """Makes the run's folder `workdir` from the checkpoint in `source`.

  Args:
    dtype: 'bfloat16' or 'float32', of the parameters and of the computation; None takes the types
      of the files and of config.json.

  UserError for anything in config.json or the files that the model cannot express; then there is
  no `workdir`.
  """
  source, target = Path(source).expanduser(), new_folder('workdir', workdir)
  hf = HFConfig.read(source)
  tokenizer, told = tokenizers.find(source)
  layout, config = _config(hf, source, dtype, tokenizer)
  tensors = safetensors.read_folder(source)
  placed = _placed(layout, config, tensors)
  types = _types(placed, tensors, dtype)
  origin = {
    'converted_from': {
      'folder': str(source.resolve()),
      'layout': layout,
      'config': dict(hf.values),
      'files': {path.name: path.stat().st_size for path in {t.file for t in tensors.values()}},
    }
  }
  with safetensors.Reader(tensors) as reader:
    sources = {
      each.name: Source(each, types[each.name], _filler(each, types[each.name], reader))
      for each in placed
    }
    size = new_run.write(target, 'converting', config, tokenizer, sources, origin)
  notes = [*hf.notes, told, *_told_of_types(placed, tensors, types)]
  if left_out := sorted(tensors.keys() - table.tensor_shapes(placed).keys()):
    notes.append(f'not imported, since config.json implies them: {table.first(left_out)}')
  return Converted(config, len(tensors), size, tuple(filter(None, notes)))


def _config(hf, source, dtype, tokenizer) -> tuple[str, Config]:
  """(the layout's name, the run's config)."""
  model_type = hf.get('model_type')
  if model_type not in LAYOUTS:
    raise hf.refused('model_type', f'one of {", ".join(map(repr, LAYOUTS))}')
  keys = LAYOUTS[model_type].to_config(hf) | _computed_in(hf, dtype)
  hf.finish()
  if tokenizer:
    if tokenizer.vocab_size > keys['model.vocab_size']:
      raise UserError(
        f'{source}: its tokenizer has {tokenizer.vocab_size:,} pieces, and config.json '
        f'vocab_size={keys["model.vocab_size"]:,}: it belongs to another model'
      )
    keys['data.vocab_size'] = tokenizer.vocab_size
  name = source.resolve().name
  values = moe_config.defaults()
  values.update_from_flattened_dict(keys | {'name': name if name.isprintable() else model_type})
  try:
    return model_type, moe_config.from_config_dict(values)
  except UserError as error:
    raise UserError(f'{source / "config.json"} makes no valid config: {error}') from error


def _computed_in(hf, dtype) -> dict[str, Any]:
  """{'model.dtype': …}: `dtype`, or else config.json's torch_dtype, whose newer name is `dtype`.
  UserError if that is neither 'bfloat16' nor 'float32'.
  """
  stored = hf.get('torch_dtype', hf.get('dtype'))
  hf.get('dtype')
  if dtype is None and stored not in ('bfloat16', 'float32'):
    raise hf.refused(
      'torch_dtype', "'bfloat16' or 'float32', or say --dtype=float32 (exact) or --dtype=bfloat16"
    )
  return {'model.dtype': dtype or stored}


def _placed(layout: str, config: Config, tensors: Mapping) -> Sequence[Placed]:
  """The table that fits the files. UserError unless both have the same tensors in the same shapes,
  of a type in safetensors.DTYPES.
  """
  made = {
    name: table.place(entries, config, layout)
    for name, entries in LAYOUTS[layout].tables(config).items()
  }
  placed = table.best(made, tensors)
  shapes = table.tensor_shapes(placed)
  derived = {
    name.format(layer=layer)
    for name in LAYOUTS[layout].derived
    for layer in range(config.model.num_layers)
  }
  folder = next(iter(tensors.values())).file.parent
  if missing := [name for name in shapes if name not in tensors]:
    raise UserError(
      f'{folder} lacks {len(missing):,} tensors of its config.json: {table.first(missing)}'
    )
  if extra := [name for name in tensors if name not in shapes and name not in derived]:
    raise UserError(
      f'{folder} has {len(extra):,} tensors that its config.json does not account for: '
      f'{table.first(extra)}'
    )
  for name, shape in shapes.items():
    if tensors[name].shape != shape:
      raise UserError(
        f'{tensors[name].file}: {name} has the shape {list(tensors[name].shape)}; '
        f'by config.json it is {list(shape)}'
      )
    if tensors[name].dtype not in safetensors.DTYPES:
      raise UserError(
        f'{tensors[name].file}: {name} is of type {tensors[name].dtype}; quantised checkpoints '
        f'are not read: give the original, in one of {", ".join(safetensors.DTYPES)}'
      )
  return placed


def _types(placed, tensors, dtype) -> dict[str, np.dtype]:
  """The type in which to store each parameter, by name. UserError if its tensors differ in type
  and no `dtype` is given.
  """
  types = {}
  for each in placed:
    found = {tensors[name].dtype: name for name, _ in each.tensors()}
    if len(found) > 1 and dtype is None:
      listed = ', '.join(f'{name} is {kind}' for kind, name in found.items())
      raise UserError(f'{each.name} would be of several types: {listed}; choose one by --dtype')
    types[each.name] = _TYPES[dtype] if dtype else safetensors.DTYPES[next(iter(found))]
  return types


def _told_of_types(placed, tensors, types):
  """One note if tensors are rounded, else none."""
  narrowed = {'F32': ('bfloat16', 'float16'), 'F16': ('bfloat16',), 'BF16': ()}
  rounded = [
    name
    for each in placed
    for name, _ in each.tensors()
    if types[each.name].name in narrowed[tensors[name].dtype]
  ]
  return [f'{len(rounded):,} tensors are rounded to bfloat16'] if rounded else []


def _filler(placed: Placed, dtype: np.dtype, reader: safetensors.Reader):
  """Returns the function that reads a box of a parameter: matrices in the file's order, converted
  to `dtype`.
  """

  def fill(box):
    content = np.empty(placed.box_in_file(box), dtype)
    for piece in placed.pieces(box):
      block = content[piece.index]
      of_file = safetensors.DTYPES[reader.tensors[piece.tensor].dtype]
      raw = block if of_file == dtype else np.empty(block.shape, of_file)
      reader.read(piece.tensor, piece.rows.start, raw)
      if raw is not block:
        block[...] = raw.astype(dtype)
    return placed.without_rows(content)

  return fill
