"""A checkpoint's parameters, written and read a box at a time, in the memory of a few boxes.

The format is Orbax's own: `Handler` replaces its handler of arrays, and Orbax does the rest. The
arrays are not compressed: bfloat16 weights hardly shrink, and uncompressed ones load at no more
than the cost of reading their bytes.
"""

import concurrent.futures
import contextlib
import itertools
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from absl import logging
from orbax.checkpoint import type_handlers

from moe.convert.table import Placed
from moe.storage import checksums

_CHUNK = 4 << 20  # bytes that are read together; small, so that a shard reads only what it needs
_BOX = 32 << 20  # bytes that a thread handles at a time; it holds a few copies
_THREADS = 4
_WIDTH_PARTS = 8  # a mesh splits widths over its devices: each then reads its own chunks

Box = tuple[slice, ...]


class Source:
  """A leaf of a tree to save: a parameter's shape and type, and how to fill it. It has no values
  yet.
  """

  def __init__(self, placed: Placed, dtype: np.dtype, fill: Callable[[Box], np.ndarray]):
    """`fill` returns a box's content as contiguous matrices in the file's order. Several threads
    call it.
    """
    self.placed, self.dtype, self.fill = placed, np.dtype(dtype), fill
    self.shape, self.size = placed.shape, placed.size
    self.nbytes = self.size * self.dtype.itemsize


class Stored(NamedTuple):
  """An array of a checkpoint, opened but not read."""

  array: ts.TensorStore
  chunks: tuple[int, ...]


def chunks_for(placed: Placed, itemsize: int) -> tuple[int, ...]:
  """The shape of a chunk, which is stored and read as a whole: rows of one matrix, or of a large
  matrix their part on one of _WIDTH_PARTS devices.
  """
  shape = [1 if i < placed.stacked else n for i, n in enumerate(placed.shape)]
  if math.prod(shape) * itemsize > _CHUNK // 4 and 'width' in placed.axes:
    width = placed.axes.index('width')
    shape[width] = -(-shape[width] // _WIDTH_PARTS)
  rows = placed.rows_dimension
  of_row = math.prod(shape) // shape[rows] * itemsize
  # A box consists of whole rows of the file, and of whole chunks.
  most = min(_CHUNK // of_row, _BOX // (placed.matrix[1] * itemsize))
  shape[rows] = max(1, min(shape[rows], most))
  return tuple(shape)


def boxes(placed: Placed, chunks: Sequence[int], itemsize: int) -> Iterator[Box]:
  """Yields boxes of whole chunks that together cover a parameter. Each has about _BOX bytes, or is
  a single larger chunk.

  A box grows along the file's columns first, then its rows, then over experts and layers.
  """
  shape = placed.shape
  box = [min(n, chunk) for n, chunk in zip(shape, chunks, strict=True)]
  core = list(range(placed.stacked, len(shape)))
  for dimension in (core if placed.entry.transposed else core[::-1]) + [*range(placed.stacked)][
    ::-1
  ]:
    times = max(1, _BOX // (math.prod(box) * itemsize))
    box[dimension] = min(shape[dimension], box[dimension] * times)
  steps = [range(0, n, step) for n, step in zip(shape, box, strict=True)]
  for begins in itertools.product(*steps):
    yield tuple(slice(at, min(at + step, n)) for at, step, n in zip(begins, box, shape))


def save(path: Path, tree: dict, others: dict, progress: Callable[[int], None]) -> dict[str, int]:
  """Writes a step's folder and returns the checksums of its parameters.

  Args:
    tree: the item `params`, a tree of `Source`.
    others: the other items, as Orbax's arguments by name.
    progress: called with the number of bytes that were written.

  Raises what a source raises.
  """
  handler = Handler(progress)
  registry = type_handlers.create_type_handler_registry((Source, handler))
  with _quiet():
    handlers = {'params': ocp.PyTreeCheckpointHandler(type_handler_registry=registry)}
  for name, args in others.items():
    is_json = isinstance(args, ocp.args.JsonSave)
    handlers[name] = ocp.JsonCheckpointHandler() if is_json else ocp.StandardCheckpointHandler()
  checkpointer = ocp.Checkpointer(ocp.CompositeCheckpointHandler(**handlers))
  args = ocp.args.Composite(params=ocp.args.PyTreeSave(tree), **others)
  try:
    with _quiet(), contextlib.closing(checkpointer):
      checkpointer.save(path.absolute(), args)
  except Exception as error:
    # Orbax only reports that parameters are missing; the handler's fault says why.
    raise handler.fault or error from None
  finally:
    handler.stop.set()
  if handler.fault:
    raise handler.fault
  return handler.checksums


@contextlib.contextmanager
def _quiet():
  """Silences Orbax's log: its threads print tracebacks of errors that are raised anyway."""
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.FATAL)
  try:
    yield
  finally:
    logging.set_verbosity(verbosity)


def checksum(placed: Placed, content: np.ndarray, box: Box) -> int:
  """What a box adds to the checksum of its parameter; `content` is in the file's order."""
  strides = checksums.strides_of(placed.shape)
  begins = [each.start for each in box]
  if placed.entry.transposed:
    for order in (strides, begins):
      order[-2:] = order[:-3:-1]
  return checksums.of_part(content, begins, strides)


class Handler(type_handlers.NumpyHandler):
  """The handler that Orbax calls to write `Source` leaves. They are read back as JAX arrays."""

  def __init__(self, progress: Callable[[int], None]):
    super().__init__()
    self._progress = progress
    self.checksums: dict[str, int] = {}
    self.fault: Exception | None = None
    self.stop = threading.Event()  # set once nobody waits for the remaining boxes

  def typestr(self) -> str:
    return 'jax.Array'

  async def serialize(self, values, infos, args=None):
    """Returns an Orbax future that completes when everything is on disk."""
    del args
    return [ocp.future.CommitFutureAwaitingContractedSignals(self._write(values, infos))]

  async def _write(self, values, infos):
    try:
      for info in infos:
        # Older versions of Orbax have made the folder by now.
        if hasattr(info, 'await_path_creation'):
          await info.await_path_creation()
      arrays = [_create(source, info) for source, info in zip(values, infos, strict=True)]
      for name, part, size in run(self._work(values, arrays), self.stop):
        key = keystr(name)
        self.checksums[key] = (self.checksums.get(key, 0) + part) % 2**32
        self._progress(size)
    except Exception as error:
      self.fault = error

  def _work(self, sources, arrays):
    def write(source, array, box):
      content = source.fill(box)
      array[box].write(source.placed.in_file_order(content)).result()
      return source.placed.name, checksum(source.placed, content, box), content.nbytes

    for source, array in zip(sources, arrays, strict=True):
      itemsize = source.dtype.itemsize
      for box in boxes(source.placed, chunks_for(source.placed, itemsize), itemsize):
        yield write, source, array, box


def _create(source, info):
  """Creates a parameter's array, still empty, at the path that Orbax gives."""
  spec = type_handlers.get_json_tspec_write(
    info, True, source.shape, source.shape, source.dtype, jax.process_index()
  )
  chunks = chunks_for(source.placed, source.dtype.itemsize)
  spec['metadata'] |= {'chunks': list(chunks), 'compressor': None}
  spec |= {'dtype': source.dtype.name}
  base = spec['kvstore']['base']
  if isinstance(base, str):
    base = {'driver': 'file', 'path': base.removeprefix('file://')}
  # The whole folder is synced once, when it is complete.
  spec['kvstore']['base'] = base | {'file_io_sync': False}
  return ts.open(spec, open=True, create=True, context=info.ts_context).result()


def open_stored(path: Path, name: str) -> Stored:
  """Opens a parameter of the step in `path` by its dotted name. Raises TensorStore's error if it
  cannot be opened.
  """
  base = f'file://{path.absolute()}/params/'
  spec = {'driver': 'zarr', 'kvstore': {'driver': 'ocdbt', 'base': base, 'path': f'{name}/'}}
  array = ts.open(spec, open=True, read=True).result()
  return Stored(array, tuple(array.chunk_layout.read_chunk.shape))


def keystr(name: str) -> str:
  """A parameter's key among the checksums: `jax.tree_util.keystr` of its path."""
  return ''.join(f'[{key!r}]' for key in name.split('.'))


def run(work: Iterable[tuple], stop: threading.Event | None = None) -> Iterator:
  """Yields the result of each (function, arguments…) in order; a few run at a time. An exception
  in one, or `stop`, cancels the rest.
  """
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    futures = [pool.submit(*each) for each in work]
    try:
      for future in futures:
        if stop and stop.is_set():
          break
        yield future.result()
    finally:
      for future in futures:
        future.cancel()
