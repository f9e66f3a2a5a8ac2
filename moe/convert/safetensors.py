"""Reads and writes the safetensors format by position. Files are never memory-mapped, so their
pages do not count as memory of the process.

A file is 8 bytes with the length of a JSON header, the header {name: {dtype, shape,
data_offsets}}, and the tensors' bytes, row-major, little-endian, without gaps. Several files
are shards, which model.safetensors.index.json lists.
https://github.com/huggingface/safetensors
"""

import contextlib
import json
import math
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

from moe import files
from moe.convert.planned import Planned
from moe.convert.table import first
from moe.errors import UserError, of_file

DTYPES = {
  'BF16': np.dtype(ml_dtypes.bfloat16),
  'F16': np.dtype(np.float16),
  'F32': np.dtype(np.float32),
}
INDEX = 'model.safetensors.index.json'
_LARGEST_HEADER = 100_000_000  # bytes, as the format says


class Tensor(NamedTuple):
  """Where a tensor lies, and its type and shape."""

  name: str
  dtype: str  # as the format writes it, 'BF16'
  shape: tuple[int, ...]
  file: Path
  begin: int  # first byte in the file
  size: int  # bytes


class Reader:
  """The tensors of a folder, read a few rows at a time."""

  def __init__(self, tensors: Mapping[str, Tensor]):
    self.tensors = tensors
    self._stack = contextlib.ExitStack()
    self._open: dict[Path, int] = {}

  def __enter__(self) -> 'Reader':
    for path in sorted({tensor.file for tensor in self.tensors.values()}):
      try:
        self._open[path] = os.open(path, os.O_RDONLY)
      except OSError as error:
        self._stack.close()
        raise of_file(error, path) from error
      self._stack.callback(os.close, self._open[path])
    return self

  def __exit__(self, *unused) -> None:
    self._stack.close()

  def read(self, name: str, row: int, block: np.ndarray) -> None:
    """Fills a contiguous block [rows, columns], which has the file's type, from the tensor's row
    `row` on. Any thread may call it.
    """
    tensor = self.tensors[name]
    at = tensor.begin + row * block.shape[1] * block.itemsize
    left = memoryview(block.reshape(-1).view(np.uint8))
    while left:
      try:
        count = os.preadv(self._open[tensor.file], [left], at)
      except OSError as error:
        raise of_file(error, tensor.file) from error
      if not count:
        raise UserError(f'{tensor.file} is truncated: {name} ends beyond it')
      left, at = left[count:], at + count


def read_folder(folder: Path) -> dict[str, Tensor]:
  """Every tensor of a checkpoint, by name. Reads only headers.

  UserError if files and index disagree, or a file is no safetensors file.
  """
  weight_map = _read_index(folder)
  if weight_map is None:
    paths = sorted(folder.glob('*.safetensors'))
  else:
    paths = [folder / name for name in sorted(set(weight_map.values()))]
  if not paths:
    other = sorted(path.name for path in folder.glob('*.bin'))
    raise UserError(
      f'{folder} has no *.safetensors file'
      + (
        f' (but {first(other)}, which hold pickled Python: save them as safetensors)'
        if other
        else ''
      )
    )
  tensors: dict[str, Tensor] = {}
  for path in paths:
    for tensor in _read_header(path):
      if tensor.name in tensors:
        raise UserError(
          f'the tensor {tensor.name} is given twice: in {tensors[tensor.name].file.name} and in '
          f'{path.name} of {folder}'
        )
      tensors[tensor.name] = tensor
  if weight_map is not None:
    _compare(folder, weight_map, tensors)
  return tensors


def plan(
  shapes: Mapping[str, Sequence[int]], dtypes: Mapping[str, str], largest: int
) -> list[Planned]:
  """The shards to write, with tensors in the order of `shapes`. The tensors of a shard have at most
  `largest` bytes, unless it is a single larger one.
  """
  sizes = {name: math.prod(shape) * DTYPES[dtypes[name]].itemsize for name, shape in shapes.items()}
  groups: list[list[str]] = [[]]
  total = 0
  for name, size in sizes.items():
    if groups[-1] and total + size > largest:
      groups.append([])
      total = 0
    groups[-1].append(name)
    total += size
  planned = []
  for number, names in enumerate(groups, start=1):
    header, end = {'__metadata__': {'format': 'pt'}}, 0
    for name in names:
      offsets = [end, end + sizes[name]]
      header[name] = {'dtype': dtypes[name], 'shape': list(shapes[name]), 'data_offsets': offsets}
      end = offsets[1]
    text = json.dumps(header, separators=(',', ':')).encode()
    text += b' ' * (-len(text) % 8)
    begin = 8 + len(text)
    spans = {name: tuple(begin + at for at in header[name]['data_offsets']) for name in names}
    file = f'model-{number:05}-of-{len(groups):05}.safetensors'
    planned.append(Planned(file, struct.pack('<Q', len(text)) + text, spans, begin + end))
  return planned


def index(planned: Sequence[Planned]) -> dict:
  """The content of model.safetensors.index.json."""
  total = sum(end - begin for file in planned for begin, end in file.spans.values())
  weight_map = {name: file.name for file in planned for name in file.spans}
  return {'metadata': {'total_size': total}, 'weight_map': weight_map}


def _read_index(folder):
  """{tensor: file} of the index; None if the folder has no index. UserError if it is malformed."""
  path = folder / INDEX
  try:
    weight_map = files.read_json(path).get('weight_map')
  except FileNotFoundError:
    return None
  except OSError as error:
    raise of_file(error, path) from error
  except ValueError as error:
    raise UserError(f'{path} is not JSON of an index ({error})') from error
  plain = isinstance(weight_map, dict) and all(
    isinstance(name, str) and name == os.path.basename(name) for name in weight_map.values()
  )
  if not plain or not weight_map:
    raise UserError(f"{path} has no 'weight_map' of tensors to files beside it")
  return weight_map


def _compare(folder, weight_map, tensors):
  """UserError unless every file has the tensors that the index lists for it, and no others."""
  for name, file in weight_map.items():
    if name not in tensors:
      raise UserError(f'{folder / INDEX} says that {name} is in {file}: it is not')
    if tensors[name].file.name != file:
      raise UserError(
        f'{folder / INDEX} says that {name} is in {file}: it is in {tensors[name].file.name}'
      )
  if extra := [name for name in tensors if name not in weight_map]:
    raise UserError(
      f'{tensors[extra[0]].file} has tensors that {INDEX} does not list: {first(extra)}'
    )


def _read_header(path: Path) -> Iterator[Tensor]:
  """The tensors in a file's header. UserError if the file is missing, damaged or truncated."""
  try:
    with open(path, 'rb') as file:
      size = os.fstat(file.fileno()).st_size
      (length,) = struct.unpack('<Q', file.read(8).ljust(8, b'\xff'))
      if length > min(_LARGEST_HEADER, size - 8):
        raise UserError(
          f'{path} is damaged or truncated: its header would be {length:,} bytes long'
        )
      text = file.read(length)
  except FileNotFoundError as error:
    raise UserError(f'{path} is missing: {INDEX} lists it') from error
  except OSError as error:
    raise of_file(error, path) from error
  try:
    header = json.loads(text.decode('utf-8'), object_pairs_hook=lambda pairs: _once(pairs, path))
    entries = {name: entry for name, entry in header.items() if name != '__metadata__'}
    found = [
      Tensor(
        name,
        str(entry['dtype']),
        tuple(map(_count, entry['shape'])),
        path,
        8 + length + _count(entry['data_offsets'][0]),
        _count(entry['data_offsets'][1]) - entry['data_offsets'][0],
      )
      for name, entry in entries.items()
    ]
  except UserError:
    raise
  except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
    raise UserError(f'{path} is damaged: its header is not that of a safetensors file') from error
  _check_spans(path, found, 8 + length, size)
  return iter(found)


def _check_spans(path, tensors, begin, size):
  """UserError unless the tensors fill the file without gaps, each with the size of its shape and
  type.
  """
  end = begin
  for tensor in sorted(tensors, key=lambda tensor: (tensor.begin, tensor.size)):
    known = DTYPES.get(tensor.dtype)
    if tensor.begin != end or (known and tensor.size != math.prod(tensor.shape) * known.itemsize):
      raise UserError(f'{path} is damaged: {tensor.name} does not lie where its header says')
    end += tensor.size
  if end > size:
    raise UserError(f'{path} is truncated: {size:,} bytes of {end:,}')
  if end < size:
    raise UserError(f'{path} is damaged: {size - end:,} bytes of it belong to no tensor')


def _once(pairs, path):
  """The dict of a JSON object. UserError if a name occurs twice."""
  found = dict(pairs)
  if len(found) != len(pairs):
    names = [name for name, _ in pairs]
    twice = next(name for name in names if names.count(name) > 1)
    raise UserError(f'{path}: {twice} is given twice')
  return found


def _count(value):
  if not isinstance(value, int) or isinstance(value, bool) or value < 0:
    raise ValueError(f'{value!r} is no count')
  return value
