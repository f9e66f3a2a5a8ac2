"""A layout's table: which tensor of a file holds which parameter, and where in the tensor.

Every tensor is treated as a matrix [rows, columns], whatever its axes: [out, in] for a linear
layer, [E · out, in] for stacked experts, [1, D] for a norm's scale. A parameter is a stack of
matrices, by layer and by expert.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from moe.config import Config
from moe.errors import UserError

_STACKS = (
  'layers',
  'experts',
)  # logical axes that a tensor's name counts, or that are stacked in the tensor


class Entry(NamedTuple):
  """A line of the table: a parameter and the tensors that hold it."""

  parameter: str  # 'moe_blocks.moe.experts.gate'
  tensor: str  # its name, with {layer} and {expert} if each of those has its own tensor
  transposed: bool = True  # linear layers are [out, in] in the file and (in, out) here
  first_layer: int = 0  # the file's number for the stack's first layer
  part: int = 0  # which of `parts` equal parts of the tensor's rows holds the parameter
  parts: int = 1


class Piece(NamedTuple):
  """Where a block of one matrix lies in its tensor, seen as [rows, columns]."""

  tensor: str
  index: tuple[int, ...]  # of the matrix, within the requested box
  rows: slice
  columns: slice


class Placed:
  """An entry with its parameter's shape, which answers where each part of the parameter lies."""

  def __init__(self, entry: Entry, shape: Sequence[int], axes: Sequence[str | None]):
    """`axes`: the logical axis of every dimension, as the parameter declares it."""
    self.entry, self.shape, self.axes = entry, tuple(shape), tuple(axes)
    self.name = entry.parameter
    self.stacked = sum(axis in _STACKS for axis in axes)
    core = self.shape[self.stacked :]
    core = (1, *core) if len(core) == 1 else core
    self.matrix = core[::-1] if entry.transposed else core  # (rows, columns) in the file

  @property
  def rows_dimension(self) -> int:
    """The dimension of the parameter that is the rows in the file. For a scale it is the only one
    of its matrix.
    """
    return len(self.shape) - (
      1 if self.entry.transposed or len(self.shape) == self.stacked + 1 else 2
    )

  @property
  def size(self) -> int:
    return math.prod(self.shape)

  def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yields (name, shape) of every tensor that holds a part of the parameter."""
    rows, columns = self.matrix
    lies_stacked = 'experts' in self.axes and '{expert}' not in self.entry.tensor
    shape = (rows * self.entry.parts, columns)
    if len(self.shape) == self.stacked + 1:
      shape = (columns,)
    if lies_stacked:
      shape = (self.shape[self.axes.index('experts')], *shape)
    seen = set()
    for index in _indices(self.shape[: self.stacked]):
      name = self._tensor(index)
      if name not in seen:
        seen.add(name)
        yield name, shape

  def pieces(self, box: Sequence[slice]) -> Iterator[Piece]:
    """Yields the blocks of matrices that make up a box of the parameter. The box has a slice for
    every dimension.
    """
    stacks, core = box[: self.stacked], list(box[self.stacked :])
    core = [slice(0, 1), *core] if len(core) == 1 else core
    rows, columns = core[::-1] if self.entry.transposed else core
    for index in _indices([each.stop - each.start for each in stacks]):
      absolute = tuple(each.start + i for each, i in zip(stacks, index, strict=True))
      first = self._first_row(absolute)
      yield Piece(
        self._tensor(absolute), index, slice(first + rows.start, first + rows.stop), columns
      )

  def box_in_file(self, box: Sequence[slice]) -> tuple[int, ...]:
    """The shape of a box as a stack of matrices [rows, columns] in the file's order."""
    counts = [each.stop - each.start for each in box]
    stacks, core = counts[: self.stacked], counts[self.stacked :]
    core = [1, *core] if len(core) == 1 else core
    return (*stacks, *(core[::-1] if self.entry.transposed else core))

  def without_rows(self, content):
    """The content of a box of that shape, with the parameter's own number of dimensions: a scale
    has no rows.
    """
    is_scale = len(self.shape) == self.stacked + 1
    return content.reshape(*content.shape[:-2], content.shape[-1]) if is_scale else content

  def in_file_order(self, array):
    """A view of a box of the parameter as matrices in the file's order, or of those in the
    parameter's order. Takes arrays of NumPy and of TensorStore.
    """
    if not self.entry.transposed:
      return array
    axes = [*range(len(self.shape))]
    return array.transpose([*axes[:-2], axes[-1], axes[-2]])

  def _tensor(self, index):
    found = dict(zip(self.axes, index, strict=False))
    layer = self.entry.first_layer + found.get('layers', 0)
    return self.entry.tensor.format(layer=layer, expert=found.get('experts', 0))

  def _first_row(self, index):
    rows = self.matrix[0]
    expert = dict(zip(self.axes, index, strict=False)).get('experts', 0)
    stacked = 0 if '{expert}' in self.entry.tensor else expert * self.entry.parts
    return (stacked + self.entry.part) * rows


def place(table: Sequence[Entry], config: Config, layout: str) -> list[Placed]:
  """The table's entries with the shapes of a config's parameters. UserError, which names them, if
  parameters have no entry.
  """
  boxes = _declared(config)
  entries = {entry.parameter: entry for entry in table}
  if strange := [name for name in boxes if name not in entries]:
    raise UserError(f'the layout {layout} has no place for the parameters {", ".join(strange)}')
  return [Placed(entries[name], box.value.shape, box.axes) for name, box in boxes.items()]


def as_they_are(config: Config) -> dict[str, Placed]:
  """A config's parameters by name, each stored as a tensor of the same name, shape and order."""
  return {
    name: Placed(Entry(name, name, transposed=False), box.value.shape, box.axes)
    for name, box in _declared(config).items()
  }


def tensor_shapes(placed: Sequence[Placed]) -> dict[str, tuple[int, ...]]:
  """{name: shape} of all tensors, in the order of the files: embedding, layers, the rest."""
  shapes = {name: shape for each in placed for name, shape in each.tensors()}
  return dict(sorted(shapes.items(), key=lambda item: _order(item[0])))


def first(names: Sequence[str], most: int = 3) -> str:
  """The first few of many names, for a message."""
  more = len(names) - most
  return ', '.join(names[:most]) + (f' and {more:,} more' if more > 0 else '')


def best(tables: Mapping[str, Sequence[Placed]], names: Mapping) -> Sequence[Placed]:
  """The one of a layout's tables that shares most tensor names with a file."""
  shared = lambda placed: sum(name in names for name in tensor_shapes(placed))
  return max(tables.values(), key=shared)


def _declared(config):
  """A config's parameter declarations, by dotted name."""
  from moe.parameters import declared_by_path

  return {'.'.join(path): box for path, box in declared_by_path(config).items()}


def _indices(counts):
  """Yields every index of a box of these counts; only () if there are no counts."""
  if not counts:
    yield ()
    return
  for i in range(counts[0]):
    for rest in _indices(counts[1:]):
      yield (i, *rest)


def _order(name):
  parts = name.split('.')
  numbers = tuple(int(part) for part in parts if part.isdigit())
  kind = 0 if 'embed' in name else 1 if numbers else 2
  return kind, numbers[:1], name if not numbers[1:] else '', numbers[1:], name
