"""Reads files of one JSON object per line, whatever a kill, an editor
or a newer version may have left in them.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from moe.errors import UserError, of_file

NUMBER = (int, float)
NUMBER_OR_NULL = (int, float, type(None))
Shape = Mapping[str, object]


def read(file: Path, shape: Shape, required: tuple[str, ...], growing: bool = False) -> list[dict]:
  """The objects, in order; [] without a file. UserError, one line,
  names the file and the line at fault.

  `shape`: what each key of an object may hold: a type, a tuple of types, or a shape again; '*'
  stands for every other key, and a key without a shape may hold anything. `required`: the keys
  that every object must have.
  `growing`: another process is writing the file, so a last line without its line break is left out.
  """
  try:
    *texts, end = file.read_bytes().split(b'\n')
  except FileNotFoundError:
    return []
  except OSError as error:
    raise of_file(error, file) from error
  texts += [end] if end and not growing else []
  return [_object(file, number, text, shape, required) for number, text in enumerate(texts, 1)]


def _object(file, number, text, shape, required):
  try:
    made = json.loads(text.decode('utf-8'))
    if lacking := [key for key in required if not isinstance(made, dict) or key not in made]:
      raise ValueError(f'no object with {lacking[0]!r}')
    _check(made, shape, '')
  except (ValueError, RecursionError) as error:
    raise UserError(
      f'{file}, line {number} is damaged ({error}): restore the file, or delete that line'
    ) from error
  return made


def _check(value, shape, where):
  """ValueError unless `value` has the shape."""
  kinds = dict if isinstance(shape, Mapping) else shape
  # bool is an int to Python, and no number here.
  if not isinstance(value, kinds) or isinstance(value, bool):
    wanted = kinds if isinstance(kinds, tuple) else (kinds,)
    names = ' or '.join(_NAMES[kind] for kind in wanted if kind in _NAMES)
    raise ValueError(f'{where} must be {names}, not {json.dumps(value)[:40]}')
  if isinstance(shape, Mapping):
    for key, member in value.items():
      if (of_member := shape.get(key, shape.get('*'))) is not None:
        _check(member, of_member, f'{where}.{key}' if where else key)


_NAMES = {
  str: 'a string',
  int: 'an integer',
  float: 'a number',
  type(None): 'null',
  dict: 'an object',
  list: 'a list',
}
