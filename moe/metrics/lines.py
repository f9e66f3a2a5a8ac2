"""The end of a run's metrics.jsonl, read backwards:
a restart costs the same however long the file is.

A line is a JSON object with 'step', an integer; the end of the file without its line break is none.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from moe import files
from moe.errors import UserError

_BLOCK = 1 << 16  # bytes read at once


class _End(NamedTuple):
  """How far the lines up to a step reach: `size` bytes,
  the last of step `step` (None without any).
  """

  size: int
  step: int | None
  later: tuple[int, ...]  # steps of the lines after them, from the last one on
  damaged: int  # bytes at the very end of the file that are no lines


def take_back(path: Path, step: int) -> str:
  """Removes the lines after `step`, which a run that goes on from there writes again;
  returns what there is to tell.

  Bytes at the end that are no line, as a kill or a crash of the machine leaves, go too; into a file
  beside where they may be of a step that is not written again. UserError for a damaged line further
  up of which nothing tells whether it comes after `step`.
  """
  if not path.exists():
    return f'{path} is missing: what was logged up to step {step} is lost' if step else ''
  whole = path.stat().st_size
  if step == 0:
    os.truncate(path, 0)
    return f'{path} is begun again, as no checkpoint has taken a step' if whole else ''
  end = _end(path, step)
  told = []
  if end.later:
    first, last = end.later[-1], end.later[0]
    told.append(f'{path}: the lines of steps {first} to {last} are taken back, to be written again')
  if end.step != step:
    told.append(f'{path} has no line of step {step}, where the run goes on; its last is {end.step}')
    if end.damaged:
      beside = path.with_name(f'{path.name}.damaged')
      with path.open('rb') as file, beside.open('ab') as other:
        file.seek(whole - end.damaged)
        other.write(file.read() + b'\n')
      told.append(f'{end.damaged} damaged bytes of its end are moved to {beside}')
  if end.size != whole:
    os.truncate(path, end.size)
  return '; '.join(told)


def last_up_to(path: Path, step: int) -> dict | None:
  """The last line of a step up to `step`; None where there is none."""
  whole = (_parsed(text) for _, text in _backwards(path)) if path.is_file() else ()
  return next((line for line in whole if line and line['step'] <= step), None)


def amend_last(path: Path, values: Mapping[str, object]) -> None:
  """Adds values to the last line, which must be whole."""
  begin, text = next(_backwards(path))
  line = files.to_json(_parsed(text) | values) + '\n'
  # One write over the line's place: the new one is the longer one.
  with path.open('r+b') as file:
    file.seek(begin)
    file.write(line.encode('utf-8'))


def _end(path, step):
  size = path.stat().st_size
  later, damaged, doubtful = [], 0, None
  for begin, text in _backwards(path):
    line = _parsed(text)
    if line is None and not later:
      size, damaged = begin, damaged + len(text)
    elif line is None:
      doubtful = begin
    elif line['step'] > step:
      size, doubtful = begin, None
      later.append(line['step'])
    else:
      _refuse(path, doubtful)
      return _End(size, line['step'], tuple(later), damaged)
  _refuse(path, doubtful)
  return _End(size, None, tuple(later), damaged)


def _refuse(path, begin):
  """UserError that names the line that begins there; nothing where `begin` is None."""
  if begin is None:
    return
  number, left = 1, begin
  with path.open('rb') as file:
    while left:
      block = file.read(min(_BLOCK, left))
      number, left = number + block.count(b'\n'), left - len(block)
  raise UserError(
    f'{path}, line {number} is damaged: restore the file, or delete that line, and the run goes on'
  )


def _backwards(path: Path) -> Iterator[tuple[int, bytes]]:
  """(offset, text with its line break) of every line, the last one first."""
  with path.open('rb') as file:
    begin = file.seek(0, os.SEEK_END)
    # What is read of lines whose beginning is not read yet, in pieces, the first one last.
    pieces: list[bytes] = []
    while begin > 0:
      size = min(_BLOCK, begin)
      begin -= size
      file.seek(begin)
      block = file.read(size)
      if pieces and b'\n' not in block:
        pieces.append(block)
        continue
      lines = _split_lines(block + b''.join(reversed(pieces)))
      offset = begin + sum(map(len, lines))
      for text in reversed(lines[1:]):
        offset -= len(text)
        yield offset, text
      pieces = [lines[0]]
    if pieces:
      yield 0, b''.join(reversed(pieces))


def _split_lines(content):
  """Lines with their \\n, and only \\n, at the end."""
  lines = [line + b'\n' for line in content.split(b'\n')]
  lines[-1] = lines[-1][:-1]
  return lines if lines[-1] else lines[:-1]


def _parsed(text):
  """The object of a whole line; None for anything else."""
  if not text.endswith(b'\n'):
    return None
  try:
    line = json.loads(text.decode('utf-8'))
  except (ValueError, RecursionError):
    return None
  step = line.get('step') if isinstance(line, dict) else None
  return line if isinstance(step, int) and not isinstance(step, bool) and step >= 0 else None
