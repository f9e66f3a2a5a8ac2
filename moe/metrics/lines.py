"""The end of a run's metrics.jsonl, read backwards:
a restart costs the same however long the file is.

A line is a JSON object with an integer 'step'. What follows the last line break is not a line.
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
  """Where the lines up to a step end: after `size` bytes,
  with a line of step `step` (None if there is no line).
  """

  size: int
  step: int | None
  later: tuple[int, ...]  # steps of the lines after them, the last line first
  damaged: int  # bytes at the very end of the file that are not lines


def take_back(path: Path, step: int) -> str:
  """Removes the lines after `step`, which a run that resumes there writes again;
  returns a message for the user, or ''.

  A kill or a crash of the machine can leave bytes at the end that are not a line. They are removed
  too, and kept in a file beside this one if they may belong to a step that is not written again.
  UserError for a damaged line further up that may come before or after `step`.
  """
  if not path.exists():
    return f'{path} is missing: what was logged up to step {step} is lost' if step else ''
  whole = path.stat().st_size
  if step == 0:
    os.truncate(path, 0)
    return f'{path} starts over, since no checkpoint has been saved yet' if whole else ''
  end = _end(path, step)
  told = []
  if end.later:
    first, last = end.later[-1], end.later[0]
    told.append(f'{path}: the lines of steps {first} to {last} are removed, to be written again')
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
  """The last line whose step is at most `step`; None if there is none."""
  whole = (_parsed(text) for _, text in _backwards(path)) if path.is_file() else ()
  return next((line for line in whole if line and line['step'] <= step), None)


def amend_last(path: Path, values: Mapping[str, object]) -> None:
  """Adds values to the last line, which must be whole."""
  begin, text = next(_backwards(path))
  line = files.to_json(_parsed(text) | values) + '\n'
  # A single write over the old line, none of which remains: the new line is longer.
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
  """Raises UserError, naming the line at byte `begin`; does nothing if `begin` is None."""
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
  """Yields (offset, text with its line break) of every line, the last one first."""
  with path.open('rb') as file:
    begin = file.seek(0, os.SEEK_END)
    # The pieces read so far of a line whose beginning is not read yet, the last piece first.
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
  """The lines, each with its \\n. No other line break ends a line."""
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
