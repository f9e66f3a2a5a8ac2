"""Parquet."""

from collections.abc import Iterator
from pathlib import Path

from moe.data.readers.base import BadRow, Rules, checked, some, too_long
from moe.errors import UserError

# Largest ratio of a column's unpacked size to its size in the file; text stays far below.
_MOST_EXPANSION = 200


def read(path: Path, text_key: str, rules: Rules) -> Iterator[str]:
  """See `read_texts`."""
  import pyarrow  # takes 0.3 s, so only those who have such files import it
  import pyarrow.parquet

  try:
    columns = pyarrow.parquet.read_schema(path).names
    if text_key not in columns:
      raise UserError(
        f'{path}: no column {text_key!r} (data.text_key); the file has {some(columns)}'
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
  """How many rows of a group are decoded together. UserError if the mean row is longer than a
  document may be, or the group unpacks to more than any text would.
  """
  columns = map(group.column, range(group.num_columns))
  sizes = [
    (column.total_uncompressed_size, column.total_compressed_size)
    for column in columns
    # What is nested in the column, such as a list's elements, has a longer path.
    if f'{column.path_in_schema}.'.startswith(f'{text_key}.')
  ]
  whole, packed = map(sum, zip(*sizes))
  mean = whole / max(group.num_rows, 1)
  if mean > rules.max_bytes:
    raise UserError(f'{path} row group {number}: {too_long("a document", rules)}')
  if whole > 4 * rules.max_bytes and whole > _MOST_EXPANSION * packed:
    raise UserError(
      f'{path} row group {number}: {packed} bytes unpack to {whole}, which no text does: '
      f'if it is text, raise data.max_document_mb={rules.max_bytes / 1e6:g}'
    )
  return max(1, min(256, int(rules.max_bytes / max(mean, 1))))


def _parquet_value(value, where, text_key, rules):
  try:
    text = value.as_py()
  except UnicodeDecodeError:
    rules.on_bad(BadRow(f'{where}: not UTF-8'))
    return
  yield from checked(text, where, text_key, rules)
