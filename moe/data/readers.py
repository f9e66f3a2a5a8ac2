"""One file → its texts, one after another. Every fault of a file is a UserError that names the file and the place."""

import contextlib
import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path

from moe.errors import UserError, of_system


def read_texts(path: Path, text_key: str) -> Iterator[str]:
  """Texts of a file by its suffix: .jsonl(.gz), .parquet, anything else plain text (.gz too), which is one text.

  Holds one plain-text file, one line, or one batch of Parquet rows at a time. `text_key` names the JSONL field or the
  Parquet column. Newlines stay as they are.
  """
  name = path.name.lower().removesuffix('.gz')
  with _file_errors(path):
    if name.endswith('.jsonl'):
      yield from _jsonl(path, text_key)
    elif path.suffix.lower() == '.parquet':
      yield from _parquet(path, text_key)
    else:
      yield _plain(path)


def _open(path):
  return gzip.open(path, 'rb') if path.suffix.lower() == '.gz' else open(path, 'rb')


def _plain(path):
  with _open(path) as file:
    raw = file.read()
  try:
    return raw.decode()
  except UnicodeDecodeError as error:
    line = raw.count(b'\n', 0, error.start) + 1
    raise UserError(f'{path}:{line}: not UTF-8 (byte {error.start})') from error


def _jsonl(path, text_key):
  with _open(path) as file:
    for number, raw in enumerate(file, start=1):
      if not raw.strip():
        continue
      where = f'{path}:{number}'
      try:
        row = json.loads(raw.decode('utf-8-sig' if number == 1 else 'utf-8'))
      except UnicodeDecodeError as error:
        raise UserError(f'{where}: not UTF-8 (byte {error.start} of the line)') from error
      except (ValueError, RecursionError) as error:
        raise UserError(f'{where}: not JSON: {error}') from error
      if not isinstance(row, dict):
        raise UserError(f'{where}: a JSON object is needed, not {_kind(row)}')
      if text_key not in row:
        raise UserError(f'{where}: no field {text_key!r} (data.text_key); the row has {_some(row)}')
      yield _checked(row[text_key], where, text_key)


def _parquet(path, text_key):
  import pyarrow  # only for those who have such files: it takes 0.3 s
  import pyarrow.parquet

  try:
    with pyarrow.parquet.ParquetFile(path) as file:
      columns = file.schema_arrow.names
      if text_key not in columns:
        raise UserError(
          f'{path}: no column {text_key!r} (data.text_key); the file has {_some(columns)}'
        )
      number = 0
      for batch in file.iter_batches(batch_size=256, columns=[text_key]):
        for value in batch.column(0):
          number += 1
          where = f'{path} row {number}'
          try:
            text = value.as_py()
          except UnicodeDecodeError as error:
            raise UserError(f'{where}: not UTF-8') from error
          yield _checked(text, where, text_key)
  except pyarrow.ArrowException as error:
    raise UserError(f'{path}: not readable as Parquet: {str(error).splitlines()[0]}') from error


def _checked(text, where, text_key):
  if not isinstance(text, str):
    raise UserError(f'{where}: {text_key!r} must be a string, not {_kind(text)}')
  try:
    text.encode()
  except UnicodeEncodeError as error:  # "\ud800" alone is legal JSON, but no text
    raise UserError(
      f'{where}: {text_key!r} is no Unicode: lone surrogate at character {error.start}'
    ) from error
  return text


def _kind(value):
  return 'null' if value is None else type(value).__name__


def _some(names):
  return ', '.join(map(repr, list(names)[:8])) or 'none'


@contextlib.contextmanager
def _file_errors(path):
  try:
    yield
  except (EOFError, gzip.BadGzipFile, zlib.error) as error:
    raise UserError(f'{path}: damaged gzip file: {error}') from error
  except OSError as error:
    raise of_system(error, f'{path}: {error.strerror or error}') from error
