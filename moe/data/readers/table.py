"""CSV and TSV."""

import csv
from collections.abc import Iterator
from pathlib import Path

from moe.data.compression import Stream
from moe.data.readers.base import BadRow, Rules, too_long
from moe.errors import UserError

DELIMITER = {'csv': ',', 'tsv': '\t'}


def read(kind: str, path: Path, file: Stream, text_key: str, rules: Rules) -> Iterator[str]:
  """See `read_texts`. The first row names the columns, `text_key` among them."""
  lines = _bounded_lines(path, file, rules)
  csv.field_size_limit(rules.max_bytes)
  reader = csv.reader(lines, delimiter=DELIMITER[kind])
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
      raise UserError(f'{path}:{number}: {too_long("a line", rules)}')
    try:
      yield raw.decode()
    except UnicodeDecodeError as error:
      raise UserError(f'{path}:{number}: not UTF-8 (byte {error.start} of the line)') from error
