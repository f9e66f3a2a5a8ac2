"""Routing as pyarrow tables: one row a token and MoE layer; held-out text is streamed to Parquet.

L tokens of a text, N MoE layers, E routed experts, K chosen by a token.
"""

import contextlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from moe import files
from moe.analysis.interventions import check_routed
from moe.data.batches import held_out_stream
from moe.data.packing import Window
from moe.data.progress import Progress
from moe.data.store import HELD_OUT, PreparedData
from moe.data.tokenizers import Tokenizer
from moe.errors import UserError, of_file
from moe.inspection import programs
from moe.inspection.programs import Found, Model, Wanted
from moe.inspection.texts import Place, Text, windows

if TYPE_CHECKING:
  import pyarrow


class Source(NamedTuple):
  """The run whose routing is written."""

  model: Model
  tokenizer: Tokenizer | None
  step: int


def of_texts(
  source: Source, texts: list[Text], found: list[Found], affinities: bool
) -> 'pyarrow.Table':
  """The table of `Run.routing_table`."""
  import pyarrow  # only for those who ask for a table: it takes 0.3 s

  schema, pieces = _schema(source, affinities), _pieces(source)
  parts = [schema.empty_table()]
  for number, (text, each) in enumerate(zip(texts, found, strict=True)):
    positions_L = np.arange(len(text.tokens_L))
    is_known_L = positions_L < len(text.targets)
    rows = _Rows(number, positions_L, text.tokens_L, each, is_known_L)
    parts.append(_rows(rows, pieces, schema))
  return pyarrow.concat_tables(parts)


def check_target(path: str | os.PathLike) -> Path:
  """The path that routing is to be written to.
  UserError if it cannot be written, or exists already.
  """
  if '://' in os.fspath(path) or not os.fspath(path).strip():
    raise UserError(f'--save_routing={path}: it must be a file on this machine')
  path = Path(path).expanduser()
  if path.exists() or path.is_symlink():
    raise UserError(f'--save_routing={path}: File exists; choose another name, or delete it')
  files.try_folder(path.parent, 'the routing')
  return path


def save(source: Source, data: PreparedData, path: str | os.PathLike, affinities: bool) -> int:
  """Writes the file of `Run.save_routing`; returns the number of rows."""
  from pyarrow import parquet

  path, config = check_target(path), source.model.model.config
  check_routed(config)
  schema, pieces = _schema(source, affinities, with_domain=True), _pieces(source)
  wanted = Wanted(losses=True, choices=True, affinities=affinities)
  size, rows = config.evaluation.batch_size, 0
  total = sum(int(_documents(data, domain).document_bytes.sum()) for domain in _domains(data))
  beside = path.with_name(f'.{path.name}.tmp')
  try:
    with (
      Progress(f'writing routing to {path}', total) as progress,
      parquet.ParquetWriter(beside, schema, compression='zstd') as writer,
    ):
      for domain in _domains(data):
        texts = _held_out(data, domain, progress)
        # `number` of a place counts the documents of the domain.
        found = programs.of_windows(source.model, windows(texts, config), wanted, size)
        while group := list(itertools.islice(found, size)):
          parts = [_rows(_of_window(place, each), pieces, schema, domain) for place, each in group]
          writer.write_table(_concatenated(parts))
          rows += sum(part.num_rows for part in parts)
    os.replace(beside, path)
  except OSError as error:
    raise of_file(error, path) from error
  finally:
    with contextlib.suppress(OSError):
      beside.unlink()
  return rows


class _Rows(NamedTuple):
  """What the rows of L tokens of a text hold."""

  document: int
  positions_L: np.ndarray
  tokens_L: np.ndarray
  found: Found
  is_known_L: np.ndarray  # whether the next token is known, and so the loss


def _of_window(place: Place, found: Found) -> _Rows:
  window: Window = place.window
  positions_L = place.begin + np.arange(window.first_scored, len(window.tokens_N))
  tokens_L = window.tokens_N[window.first_scored :]
  return _Rows(place.number, positions_L, tokens_L, found, np.ones(len(tokens_L), bool))


def _held_out(data: PreparedData, domain: str, progress: Progress) -> Iterator[Text]:
  """Yields documents as evaluation reads them. Each counts as done when the next is asked for."""
  documents = _documents(data, domain)
  for number in range(len(documents)):
    stream_N, _ = held_out_stream(data, documents, number)
    yield Text(stream_N[:-1], stream_N[1:])
    progress.add(int(documents.document_bytes[number]))


def _documents(data, domain):
  return data.documents(HELD_OUT, domain)


def _domains(data):
  return data.held_out_domains


def _concatenated(tables):
  import pyarrow

  return pyarrow.concat_tables(tables).combine_chunks()


def _schema(source: Source, affinities: bool, with_domain: bool = False) -> 'pyarrow.Schema':
  import pyarrow as pa

  # Parquet's name for the items of lists, so that a table read again has the same schema.
  lists = lambda kind: pa.list_(pa.field('element', kind))
  columns = {
    'document': pa.int32(),
    'position': pa.int32(),
    'token': pa.int32(),
    'piece': pa.string(),
    'layer': pa.int32(),
    'experts': lists(pa.int32()),
    'gates': lists(pa.float32()),
    **({'affinities': lists(pa.float32())} if affinities else {}),
    'loss': pa.float32(),
  }
  if with_domain:
    columns = {'domain': pa.dictionary(pa.int32(), pa.string())} | columns
  about = {
    'run': source.model.model.config.name,
    'step': str(source.step),
    'loss': 'nats of the next token',
  }
  return pa.schema(list(columns.items()), metadata=about)


def _pieces(source: Source):
  """The pieces of all V ids, null for an id without one."""
  import pyarrow as pa

  known = [] if source.tokenizer is None else list(source.tokenizer.pieces)
  padding = source.model.model.config.model.vocab_size - len(known)
  return pa.array([*known, *[None] * padding], pa.string())


def _rows(rows: _Rows, pieces, schema, domain: str = '') -> 'pyarrow.Table':
  import pyarrow as pa

  found = rows.found
  layers, length, _ = found.experts_NLK.shape
  count = layers * length
  by_row = lambda x_L: np.repeat(x_L, layers)
  losses = pa.array(by_row(found.losses_L), pa.float32(), mask=by_row(~rows.is_known_L))

  def lists(name, x_NLk):
    """One list for every row, rows ordered by token, then layer; None if there is no x."""
    if x_NLk is None:
      return None
    offsets = np.arange(0, x_NLk.size + 1, x_NLk.shape[2], dtype=np.int32)
    values = x_NLk.swapaxes(0, 1).reshape(-1)
    return pa.ListArray.from_arrays(offsets, values, type=schema.field(name).type)

  columns = {
    'document': pa.array(np.full(count, rows.document, np.int32)),
    'position': pa.array(by_row(rows.positions_L.astype(np.int32))),
    'token': pa.array(by_row(rows.tokens_L)),
    'piece': pieces.take(pa.array(by_row(rows.tokens_L))),
    'layer': pa.array(np.tile(np.arange(layers, dtype=np.int32), length)),
    'experts': lists('experts', found.experts_NLK),
    'gates': lists('gates', found.gates_NLK),
    'affinities': lists('affinities', found.affinities_NLE),
    'loss': losses,
    'domain': pa.DictionaryArray.from_arrays(np.zeros(count, np.int32), [domain]),
  }
  return pa.Table.from_arrays([columns[name] for name in schema.names], schema=schema)
