"""One file → its texts, one after another. Every fault of a file is a UserError that
names the file and the place.
"""

import csv
import itertools
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, NoReturn

from moe.data import compression
from moe.data.compression import open_bytes
from moe.errors import UserError

_CHUNK = 1 << 20  # bytes or characters read at once
_MOST_EXPANSION = 200  # times a Parquet column's size in the file; text stays far below


class BadRow(UserError):
  """A row, or a plain file, that is no text; those beside it may be."""


def _refuse(error: BadRow) -> NoReturn:
  raise error


class Rules(NamedTuple):
  """How files are read. See the keys of `data` in experiments/base.py."""

  max_bytes: int = 64_000_000  # of one document, row or line; data.max_document_mb
  separator: str = ''  # cuts plain text into documents; '': a file is one
  on_bad: Callable[[BadRow], None] = _refuse  # data.bad_rows
  # data.format=chat: (JSON object, text_key, FILE:LINE) → text, or BadRow.
  text_of: Callable[[dict, str, str], str] | None = None


_RULES = Rules()


def read_texts(path: Path, text_key: str, rules: Rules = _RULES) -> Iterator[str]:
  """Texts of a file: JSON (lines, an array, objects in a row), Parquet, CSV or TSV, or plain text.

  Also of one compressed by gzip, zstd, bzip2 or xz. The name tells the format; where it does not,
  the contents do. At most about `rules.max_bytes` of it are in memory at a time. `text_key` names
  the field or the column. A byte-order mark in front of a text is no part of it, in any format;
  line ends stay as they are. UserError for a damaged file and for formats that hold no text by
  themselves; BadRow goes to `rules.on_bad`. Conversations (`rules.text_of`) are rows of JSON.
  """
  with compression.errors(path), open_bytes(path, rules.max_bytes) as file:
    kind = _kind(path, file, text_key)
    if rules.text_of:
      kind = 'jsonl' if _first_object(file.peek(_CHUNK)) is not None else kind
      if kind not in ('jsonl', 'json'):
        raise UserError(
          f'{path} is no JSON: data.format=chat reads a JSON object a line, or an array'
        )
    if kind == 'parquet':
      if file.compressed:
        raise UserError(
          f'{path} is a Parquet file inside {file.compressed}: unpack it, Parquet compresses itself'
        )
      texts = _parquet(path, text_key, rules)
    else:
      mark = file.peek(3)[:3] == b'\xef\xbb\xbf'
      file.read(3 if mark else 0)
      texts = _READERS[kind](path, file, text_key, rules)
    for text in texts:
      yield text.removeprefix('\ufeff')


# What begins like this is no text, whatever its name says.
_OTHERS = {
  b'PK\x03\x04': 'a ZIP archive (or a document of an office program)',
  b'%PDF-1': 'a PDF document',
  b'\x89PNG': 'an image (PNG)',
  b'\xff\xd8\xff': 'an image (JPEG)',
  b'GIF87a': 'an image (GIF)',
  b'GIF89a': 'an image (GIF)',
  b'7z\xbc\xaf\x27\x1c': 'a 7-Zip archive',
  b'Rar!\x1a': 'a RAR archive',
  b'\x04\x22\x4d\x18': 'compressed by LZ4',
  b'ARROW1\x00\x00': 'an Arrow file',
  b'\xff\xff\xff\xff': 'an Arrow stream',
  b'ORC\x01': 'an ORC file',
  b'Obj\x01': 'an Avro file',
  b'SQLite format 3\x00': 'an SQLite database',
  b'\x89HDF': 'an HDF5 file',
  b'\x93NUMPY': 'a NumPy array',
  b'\x7fELF': 'a program',
  b'\xff\xfe': 'text in UTF-16',
  b'\xfe\xff': 'text in UTF-16',
}


def _kind(path, file, text_key):
  """'jsonl', 'json', 'parquet', 'csv', 'tsv' or 'plain'.
  UserError for what is known to be something else.
  """
  head = file.peek(_CHUNK)
  for magic, what in _OTHERS.items():
    if head.startswith(magic):
      raise UserError(
        f'{path} is {what}: give plain text in UTF-8, JSON lines, JSON, CSV or Parquet'
      )
  if head[257:262] == b'ustar':
    raise UserError(f'{path} is a tar archive: unpack it')
  if head.startswith(b'PAR1'):
    return 'parquet'
  suffix = compression.suffix_within(path)
  kind = _BY_SUFFIX.get(suffix, 'unknown')
  if kind in ('csv', 'tsv'):
    return kind if text_key in _header(head, kind) else 'plain'
  if kind == 'json' and _first_object(head) is not None:
    return 'jsonl'
  if kind == 'unknown':
    return 'jsonl' if text_key in (_first_object(head) or ()) else 'plain'
  return kind


_BY_SUFFIX = {
  '.jsonl': 'jsonl',
  '.ndjson': 'jsonl',
  '.jsonlines': 'jsonl',
  '.json': 'json',
  '.parquet': 'parquet',
  '.pq': 'parquet',
  '.csv': 'csv',
  '.tsv': 'tsv',
  **dict.fromkeys(('.txt', '.text', '.md', '.rst', '.tex', '.html', '.xml'), 'plain'),
}
_DELIMITER = {'csv': ',', 'tsv': '\t'}


def _first_object(head):
  """The JSON object that is the whole first line with anything on it, else None."""
  line = next(
    (line for line in head.removeprefix(b'\xef\xbb\xbf').split(b'\n') if line.strip()), b''
  )
  try:
    row = json.loads(line) if line.lstrip().startswith(b'{') else None
  except (ValueError, RecursionError):
    return None
  return row if isinstance(row, dict) else None


def _header(head, kind):
  line = head.removeprefix(b'\xef\xbb\xbf').split(b'\n', 1)[0].decode(errors='replace')
  return next(csv.reader([line.rstrip('\r')], delimiter=_DELIMITER[kind]), [])


def _plain(path, file, text_key, rules):
  del text_key
  if rules.separator:
    yield from _separated(path, file, rules)
    return
  raw = file.read(rules.max_bytes + 1)
  if len(raw) > rules.max_bytes:
    rules.on_bad(
      BadRow(f'{path}:1: {_too_long("a document", rules)}, or cut the file by data.separator')
    )
  elif (text := _decoded(raw, path, 1, rules)) is not None:
    yield text


def _separated(path, file, rules):
  """The parts between separators, whose line ends may be of any kind.
  Parts of white space alone are none.
  """
  ends = re.escape(rules.separator).replace('\\\n', r'(?:\r\n?|\n)')
  cut, held, line, scanned, skipping = re.compile(ends.encode()), b'', 1, 0, False
  margin = 2 * len(rules.separator.encode())  # a separator may lie across two readings
  while True:
    chunk = file.read(_CHUNK)
    held, begin = held + chunk, 0
    end = max(len(held) - margin, 0) if chunk else len(held)
    for match in cut.finditer(held, scanned, end):
      if chunk and match.end() == end:  # what comes next may belong to it
        break
      if not skipping:
        yield from _part(held[begin : match.start()], path, line, rules)
      line += held.count(b'\n', begin, match.end())
      begin, skipping = match.end(), False
    if not skipping and len(held) - begin > rules.max_bytes:
      rules.on_bad(BadRow(f'{path}:{line}: {_too_long("a document", rules)}'))
      skipping = True
    if not chunk:
      if not skipping:
        yield from _part(held[begin:], path, line, rules)
      return
    if skipping:
      line += held.count(b'\n', begin, max(end - margin, begin))
      begin = max(end - margin, begin)
    held, scanned = held[begin:], max(end - margin - begin, 0)


def _part(raw, path, line, rules):
  if len(raw) > rules.max_bytes:
    rules.on_bad(BadRow(f'{path}:{line}: {_too_long("a document", rules)}'))
    return
  text = _decoded(raw, path, line, rules)
  if text and not text.isspace():
    yield text


def _decoded(raw, path, line, rules):
  try:
    return raw.decode()
  except UnicodeDecodeError as error:
    line += raw.count(b'\n', 0, error.start)
    rules.on_bad(BadRow(f'{path}:{line}: not UTF-8 (byte {error.start})'))
    return None


def _jsonl(path, file, text_key, rules):
  for number in itertools.count(1):
    raw = file.readline(rules.max_bytes + 1)
    if not raw:
      return
    where = f'{path}:{number}'
    if len(raw) > rules.max_bytes and not raw.endswith(b'\n'):
      rules.on_bad(BadRow(f'{where}: {_too_long("a line", rules)}'))
      while raw and not raw.endswith(b'\n'):
        raw = file.readline(_CHUNK)
    elif raw.strip():
      yield from _text_of_line(raw, where, text_key, rules)


def _text_of_line(raw, where, text_key, rules):
  try:
    row = json.loads(raw.decode())
  except UnicodeDecodeError as error:
    rules.on_bad(BadRow(f'{where}: not UTF-8 (byte {error.start} of the line)'))
  except (ValueError, RecursionError) as error:
    rules.on_bad(BadRow(f'{where}: not JSON: {error}'))
  else:
    yield from _field(row, where, text_key, rules)


def _json(path, file, text_key, rules):
  """Values one after another, or the elements of an array;
  none may be longer than the longest document.
  """
  decoder, ahead = json.JSONDecoder(), _Ahead(path, file, rules)
  array = ahead.skip(' \t\r\n') == '['
  if array:
    ahead.take(1)
  while following := ahead.skip(' \t\r\n,' if array else ' \t\r\n'):
    if array and following == ']':
      return
    where = f'{path}:{ahead.line}'
    yield from _field(ahead.value(decoder), where, text_key, rules)
  if array:
    raise UserError(f'{path}:{ahead.line}: not JSON: the file ends within its array')


class _Ahead:
  """Text of a file that is read as far as a JSON value needs."""

  def __init__(self, path, file, rules):
    self._path, self._file, self._rules = path, file, rules
    self._text, self._raw, self.line = '', b'', 1

  def skip(self, characters: str) -> str:
    """The next character that is none of these; '' at the end."""
    while True:
      rest = self._text.lstrip(characters)
      self.take(len(self._text) - len(rest))
      if rest or not self._more(_CHUNK):
        return self._text[:1]

  def take(self, count: int) -> None:
    self.line += self._text.count('\n', 0, count)
    self._text = self._text[count:]

  def value(self, decoder: json.JSONDecoder) -> object:
    """The JSON value that begins here."""
    while True:
      try:
        value, end = decoder.raw_decode(self._text)
        if end < len(self._text) or not self._more(_CHUNK):
          self.take(end)
          return value
      except RecursionError as error:
        raise UserError(f'{self._path}:{self.line}: not JSON: {error}') from error
      except ValueError as error:
        where = f'{self._path}:{self.line}'
        if len(self._text) > self._rules.max_bytes:
          raise UserError(f'{where}: no JSON, or {_too_long("a value", self._rules)}') from error
        if not self._more(max(_CHUNK, len(self._text))):  # twice as much each time
          raise UserError(f'{where}: not JSON: {error}') from error

  def _more(self, count):
    """Reads on; False at the end."""
    chunk = self._file.read(count)
    raw = self._raw + chunk
    try:
      text, self._raw = raw.decode(), b''
    except UnicodeDecodeError as error:
      if error.start < len(raw) - 3 or not chunk:
        line = self.line + self._text.count('\n') + raw.count(b'\n', 0, error.start)
        raise UserError(f'{self._path}:{line}: not UTF-8') from error
      text, self._raw = raw[: error.start].decode(), raw[error.start :]
    self._text += text
    return bool(chunk)


def _table(path, file, text_key, rules):
  kind = _BY_SUFFIX[compression.suffix_within(path)]
  lines = _bounded_lines(path, file, rules)
  csv.field_size_limit(rules.max_bytes)
  reader = csv.reader(lines, delimiter=_DELIMITER[kind])
  place, number = next(reader).index(text_key), 1
  while True:
    number = reader.line_num + 1
    try:
      row = next(reader, None)
    except csv.Error as error:
      raise UserError(f'{path}:{number}: not {kind.upper()}: {error}') from error
    if row is None:
      return
    if not row:
      continue
    if len(row) <= place:
      rules.on_bad(BadRow(f'{path}:{number}: no column {text_key!r} (data.text_key)'))
    else:
      yield row[place]


def _bounded_lines(path, file, rules):
  number = 0
  while raw := file.readline(rules.max_bytes + 1):
    number += 1
    if len(raw) > rules.max_bytes:
      raise UserError(f'{path}:{number}: {_too_long("a line", rules)}')
    try:
      yield raw.decode()
    except UnicodeDecodeError as error:
      raise UserError(f'{path}:{number}: not UTF-8 (byte {error.start} of the line)') from error


def _parquet(path, text_key, rules):
  import pyarrow  # only for those who have such files: it takes 0.3 s
  import pyarrow.parquet

  try:
    columns = pyarrow.parquet.read_schema(path).names
    if text_key not in columns:
      raise UserError(
        f'{path}: no column {text_key!r} (data.text_key); the file has {_some(columns)}'
      )
    # As a dictionary, so that a text which many rows share is in memory once.
    with pyarrow.parquet.ParquetFile(path, read_dictionary=[text_key]) as file:
      number = 0
      for group in range(file.metadata.num_row_groups):
        rows = _rows_at_once(path, file.metadata.row_group(group), group, text_key, rules)
        for batch in file.iter_batches(rows, row_groups=[group], columns=[text_key]):
          for value in batch.column(0):
            number += 1
            yield from _parquet_value(value, f'{path} row {number}', text_key, rules)
  except pyarrow.ArrowException as error:
    raise UserError(f'{path}: not readable as Parquet: {str(error).splitlines()[0]}') from error


def _rows_at_once(path, group, number, text_key, rules):
  """Rows of a group that are decoded together. UserError where they could only be
  more than a document may be.
  """
  columns = map(group.column, range(group.num_columns))
  sizes = [
    (column.total_uncompressed_size, column.total_compressed_size)
    for column in columns
    if column.path_in_schema.split('.')[0] == text_key
  ]
  whole, packed = map(sum, zip(*sizes))
  mean = whole / max(group.num_rows, 1)
  if mean > rules.max_bytes:
    raise UserError(f'{path} row group {number}: {_too_long("a document", rules)}')
  if whole > 4 * rules.max_bytes and whole > _MOST_EXPANSION * packed:
    raise UserError(
      f'{path} row group {number}: {packed} bytes unpack to {whole}, no text does: '
      f'raise data.max_document_mb={rules.max_bytes / 1e6:g} if it is one'
    )
  return max(1, min(256, int(rules.max_bytes / max(mean, 1))))


def _parquet_value(value, where, text_key, rules):
  try:
    text = value.as_py()
  except UnicodeDecodeError:
    rules.on_bad(BadRow(f'{where}: not UTF-8'))
    return
  yield from _checked(text, where, text_key, rules)


_READERS = {'plain': _plain, 'jsonl': _jsonl, 'json': _json, 'csv': _table, 'tsv': _table}


def _field(row, where, text_key, rules):
  if not isinstance(row, dict):
    rules.on_bad(BadRow(f'{where}: a JSON object is needed, not {_type(row)}'))
  elif rules.text_of:
    try:
      text = rules.text_of(row, text_key, where)
    except BadRow as error:
      rules.on_bad(error)
    else:
      yield from _checked(text, where, text_key, rules)
  elif text_key not in row:
    rules.on_bad(
      BadRow(f'{where}: no field {text_key!r} (data.text_key); the row has {_some(row)}')
    )
  else:
    yield from _checked(row[text_key], where, text_key, rules)


def _checked(text, where, text_key, rules):
  if not isinstance(text, str):
    rules.on_bad(BadRow(f'{where}: {text_key!r} must be a string, not {_type(text)}'))
    return
  try:
    size = len(text.encode())
  except UnicodeEncodeError as error:  # "\ud800" alone is legal JSON, but no text
    wrong = f'{text_key!r} is no Unicode: lone surrogate at character {error.start}'
    rules.on_bad(BadRow(f'{where}: {wrong}'))
    return
  if size > rules.max_bytes:
    rules.on_bad(BadRow(f'{where}: {_too_long("a document", rules)}'))
    return
  yield text


def _too_long(what, rules):
  return f'{what} of more than data.max_document_mb={rules.max_bytes / 1e6:g} MB: raise it'


def _type(value):
  return 'null' if value is None else type(value).__name__


def _some(names):
  return ', '.join(map(repr, list(names)[:8])) or 'none'
