"""One file → its texts, one after another. Every fault of a file is a UserError that names the file
and the place.

base         what all share: rules, and what makes a row a text
plain        plain text
json_values  JSON and JSON lines
table        CSV and TSV
parquet      Parquet
"""

import csv
import functools
import json
from collections.abc import Iterator
from pathlib import Path

from moe.data import compression
from moe.data.compression import open_bytes
from moe.data.readers import json_values, parquet, plain, table
from moe.data.readers.base import CHUNK, BadRow, Rules
from moe.errors import UserError

__all__ = ['BadRow', 'Rules', 'read_texts']

_RULES = Rules()


def read_texts(path: Path, text_key: str, rules: Rules = _RULES) -> Iterator[str]:
  """Texts of a file: JSON (lines, an array, objects in a row), Parquet, CSV or TSV, or plain text.

  The file may be compressed by gzip, zstd, bzip2 or xz. Its name tells the format; where it does
  not, the contents do. At most about `rules.max_bytes` of it are in memory at a time. `text_key`
  names the field or the column. A byte-order mark in front of a text is dropped, in any format;
  line ends stay as they are. UserError for a damaged file and for formats that hold no text by
  themselves; BadRow goes to `rules.on_bad`. Conversations (`rules.text_of`) are rows of JSON.
  """
  with compression.errors(path), open_bytes(path, rules.max_bytes) as file:
    kind = _kind(path, file, text_key)
    if rules.text_of:
      kind = 'jsonl' if _first_object(file.peek(CHUNK)) is not None else kind
      if kind not in ('jsonl', 'json'):
        raise UserError(
          f'{path} is no JSON: data.format=chat reads a JSON object a line, or an array'
        )
    if kind == 'parquet':
      if file.compressed:
        raise UserError(
          f'{path} is a Parquet file inside {file.compressed}: unpack it, Parquet compresses itself'
        )
      texts = parquet.read(path, text_key, rules)
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
  head = file.peek(CHUNK)
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
    if text_key not in (header := _header(head, kind)):
      raise UserError(
        f'{path}: no column {text_key!r} (data.text_key); the file has '
        f'{", ".join(map(repr, header))}'
      )
    return kind
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
_READERS = {
  'plain': plain.read,
  'jsonl': json_values.read_lines,
  'json': json_values.read_values,
  **{kind: functools.partial(table.read, kind) for kind in table.DELIMITER},
}


def _first_object(head):
  """The JSON object on the first line that is not blank; None if that line is anything else."""
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
  return next(csv.reader([line.rstrip('\r')], delimiter=table.DELIMITER[kind]), [])
