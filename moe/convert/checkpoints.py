"""Reads a run's checkpoint a box at a time, for programs that write it in another format."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from etils import epath

from moe.config import Config, from_stored
from moe.convert import parameters, safetensors
from moe.convert.adapters import Adapters, read_adapters
from moe.convert.parameters import Stored
from moe.convert.table import Piece, Placed
from moe.data.tokenizers import Tokenizer
from moe.errors import UserError
from moe.run import find_step, folder
from moe.storage import small_items
from moe.storage.reading import attempt
from moe.storage.small_items import SmallItems


class Written(NamedTuple):
  """What an export has written."""

  config: Config
  layout: str
  step: int
  tensors: int
  bytes: int
  files: int
  notes: tuple[str, ...] = ()  # for the user, a line each

  @property
  def in_words(self) -> str:
    return (
      f'{self.tensors:,} tensors of step {self.step} as {self.layout}, {self.bytes / 1e9:,.2f} GB '
      f'in {self.files} file{"s" * (self.files > 1)}'
    )


class Opened(NamedTuple):
  """Everything of a checkpoint but its parameters."""

  path: epath.Path
  step: int
  config: Config
  tokenizer: Tokenizer | None
  small: SmallItems
  adapters: Adapters  # `copy` merges them into the parameters

  @property
  def checksums(self) -> Mapping[str, int]:
    """The checksums of the parameters, by key."""
    return self.small.checksums['params']


def open_checkpoint(workdir: str | Path, step: int | None, flag: str = '--workdir') -> Opened:
  """Opens a run's newest checkpoint, or that of a given step. UserError if it cannot be read.
  `flag`: the flag that named the folder, for messages.
  """
  if '://' in str(workdir):
    raise UserError(f'{flag}={workdir} must be a folder of this machine, or mounted there')
  directory = folder(workdir, flag)
  step = find_step(workdir, step)
  path = directory / 'checkpoints' / str(step)
  small, fault = attempt(lambda: small_items.read(path))
  if fault:
    raise UserError(f'{path} is unreadable: {fault}')
  config = from_stored(small.config, f'{path}/config')
  adapters, fault = attempt(lambda: read_adapters(path, config, small.checksums['params']))
  if fault:
    raise UserError(f'{path} is unreadable: {fault}')
  return Opened(path, step, config, small.open_tokenizer(), small, adapters)


def open_arrays(opened: Opened, placed: Sequence[Placed]) -> dict[str, Stored]:
  """Opens the parameters, by name, without reading them. UserError if one has another shape than
  the config says, or a type that is not in safetensors.DTYPES.
  """
  stored, fault = attempt(lambda: _open(Path(opened.path), placed))
  if fault:
    raise UserError(f'{opened.path} is unreadable: {fault}')
  return stored


def copy(
  opened: Opened,
  placed: Sequence[Placed],
  stored: Mapping[str, Stored],
  types: Mapping[str, np.dtype],
  put: Callable[[Placed, Piece, np.ndarray], None],
  progress: Callable[[int], None],
) -> None:
  """Reads all parameters, merges adapters into them, and passes every block of every tensor to
  `put`.

  Args:
    types: the type of a parameter's blocks, by its name.
    put: takes the parameter, the block's place and the block [rows, columns]; several threads call
      it.
    progress: called with the number of bytes of each box.

  UserError if a checksum is not the one that the run saved.
  """

  def move(each, array, box):
    content = each.in_file_order(array[box]).read(order='C').result()
    part = parameters.checksum(each, content, box)
    if each.name in opened.adapters:
      opened.adapters[each.name].add(each.in_file_order(content), box)
    matrices = content.reshape(each.box_in_file(box))
    with np.errstate(over='ignore'):
      matrices = matrices.astype(types[each.name], copy=False)
    for piece in each.pieces(box):
      put(each, piece, matrices[piece.index])
    return each.name, part, matrices.nbytes

  work = [
    (move, each, stored[each.name].array, box)
    for each in placed
    for box in parameters.boxes(
      each, stored[each.name].chunks, stored[each.name].array.dtype.numpy_dtype.itemsize
    )
  ]
  sums: dict[str, int] = {}
  for name, part, size in parameters.run(work):
    key = parameters.keystr(name)
    sums[key] = (sums.get(key, 0) + part) % 2**32
    progress(size)
  if different := [name for name, value in sums.items() if opened.checksums.get(name) != value]:
    raise damaged(opened, different[0])


def damaged(opened: Opened, name: str) -> UserError:
  """The error for a parameter whose bytes are not those that were saved."""
  return UserError(
    f'{opened.path} is damaged: the bytes of {name} are not those that were saved; '
    f'give another --step'
  )


def _open(path, placed):
  types = {dtype.name for dtype in safetensors.DTYPES.values()}
  stored = {each.name: parameters.open_stored(path, each.name) for each in placed}
  for each in placed:
    array = stored[each.name].array
    if tuple(array.shape) != each.shape:
      raise ValueError(f'{each.name} has the shape {tuple(array.shape)}, not {each.shape}')
    if array.dtype.name not in types:
      raise ValueError(f'{each.name} is of type {array.dtype.name}')
  return stored
