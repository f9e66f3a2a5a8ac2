"""Rows of benchmarks: from a folder of JSONL, or from the hub if the machine reaches it.

  FOLDER/TASK/SPLIT.jsonl

TASK is the harness's name of a task that is no group, SPLIT one of its splits; a row has the same
fields as on the hub.
"""

import json
import os
import socket
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

from moe.errors import UserError, of_file, one_line


class Missing(UserError):
  """A task's rows are nowhere to be found: the table lists the task as not scored."""


class Rows(NamedTuple):
  rows: list[dict]
  lines: list[int]  # the line that each stands on, from 1


def read_rows(path: Path, fields: Collection[str] = ()) -> Rows:
  """The objects of a JSONL file; blank lines are skipped.

  fields: those that every row must have; if empty, those of the first row. UserError, with file and
  line, for a row that is not UTF-8, is no JSON object, or lacks a field.
  """
  try:
    content = path.read_bytes()
  except OSError as error:
    raise of_file(error, path) from error
  rows, lines = [], []
  for number, raw in enumerate(content.removeprefix(b'\xef\xbb\xbf').split(b'\n'), start=1):
    if not raw.strip():
      continue
    where = f'{path}, line {number}'
    try:
      row = json.loads(raw.decode())
    except UnicodeDecodeError as error:
      raise UserError(f'{where}: not UTF-8 at byte {error.start + 1}: write it in UTF-8') from error
    except ValueError as error:
      raise UserError(f'{where}: no JSON: {one_line(error)}') from error
    if not isinstance(row, dict):
      raise UserError(f'{where}: a row must be a JSON object, not {str(row)[:40]!r}')
    fields = fields or row.keys()
    for field in fields:
      if field not in row:
        raise UserError(f'{where}: no field {field!r}; a row has {", ".join(fields)}')
    rows.append(row)
    lines.append(number)
  if not rows:
    raise UserError(f'{path} has no rows: one JSON object a line')
  return Rows(rows, lines)


def must_be_folder(folder: str) -> Path:
  path = Path(folder).expanduser()
  if not path.is_dir():
    raise UserError(f'{folder} must be a folder with TASK/SPLIT.jsonl in it')
  return path


class Splits(dict):
  """{split: datasets.Dataset} of FOLDER/TASK, each read when it is first asked for."""

  def __init__(self, folder: Path, fields: Mapping[str, Collection[str]]):
    super().__init__()
    self._folder, self._fields = folder, fields
    self.read: dict[str, Rows] = {}

  def path(self, split: str) -> Path:
    return self._folder / f'{split}.jsonl'

  def __missing__(self, split: str):
    import datasets

    path = self.path(split)
    if not path.exists():
      raise Missing(f'no {path}')
    self.read[split] = read = read_rows(path, self._fields.get(split, ()))
    try:
      self[split] = datasets.Dataset.from_list(read.rows)
    except Exception as error:  # pyarrow's, of many classes
      raise _mixed(path, read, error) from error
    return self[split]


def offline_where_unreached() -> None:
  """Tells the libraries to stay offline if the hub cannot be reached: each of their tries takes a
  minute. Call it before they are imported.
  """
  if 'HF_HUB_OFFLINE' in os.environ or 'HF_DATASETS_OFFLINE' in os.environ:
    return
  host = os.environ.get('HF_ENDPOINT', 'https://huggingface.co').split('://')[-1].split('/')[0]
  name, _, port = host.partition(':')
  try:
    socket.create_connection((name, int(port or 443)), timeout=3).close()
  except (OSError, ValueError):
    os.environ['HF_HUB_OFFLINE'] = '1'


def _mixed(path, read, error):
  """The error for the first row whose values have other types than those before it."""
  import datasets

  lower, upper = 0, len(read.rows)  # the first `lower` rows agree, the first `upper` do not
  while upper - lower > 1:
    middle = (lower + upper) // 2
    try:
      datasets.Dataset.from_list(read.rows[:middle])
      lower = middle
    except Exception:
      upper = middle
  return UserError(
    f'{path}, line {read.lines[upper - 1]}: a value is of another type than in the rows before: '
    f'{one_line(error)}'
  )
