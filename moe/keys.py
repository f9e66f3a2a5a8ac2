"""What a configuration key is: its default, range, meaning and unit,
declared once beside its field.

  peak_lr: float = key(1.08e-3, 'peak learning rate', above=0, at_most=1000)

`moe/config.py` has the keys. This module has what follows from a declaration: the check of a value,
and the words for its error and for the page that lists the keys.
"""

import dataclasses
import difflib
import math
import typing
import unicodedata
from collections.abc import Container, Iterable, Mapping
from typing import Literal

from moe.errors import UserError

# What a key affects. A resumed run may change all keys but those that affect RESULTS.
RESULTS = 'results'
# Affects only the order in which floats are added up: another machine may need another value.
ROUNDING = 'rounding'
NOTHING = 'nothing'

LARGEST_INT = 2**31 - 1
MESH_AXES = ('data', 'fsdp', 'expert', 'tensor', 'stage')  # of the section mesh
ATTENTION_TARGETS = ('query', 'key', 'value', 'out')  # of finetune.lora_targets
LARGEST_SEED = 2**32 - 1
# Floats are used as float32, so a number that it rounds to 0 or to infinity is refused.
_SMALLEST_FLOAT, _LARGEST_FLOAT = 2.0**-126, 2.0**127

_SAME = object()
_WANTED = {int: 'an integer', float: 'a number', str: 'a string', bool: 'True or False'}


@dataclasses.dataclass(frozen=True)
class Key:
  """A declared key. `declared` fills in its `type` and, where it has none, its `effect`."""

  default: object
  meaning: str
  unit: str = ''
  at_least: float | None = None
  above: float | None = None
  at_most: float | None = None
  below: float | None = None
  # One more allowed value, outside the range.
  fill: int | None = None
  effect: str | None = None
  # The value that configs stored before the key existed imply, if not the default.
  before: object = _SAME
  type: object = None

  @property
  def stored_default(self) -> object:
    return self.default if self.before is _SAME else self.before

  @property
  def range(self) -> str:
    """The range in words, '' where the type says all."""
    if typing.get_origin(self.type) is Literal:
      return ''
    lower = _words(at_least=self.at_least, above=self.above)
    upper = _words(at_most=self.at_most, below=self.below)
    words = ' and '.join(filter(None, (lower, upper)))
    return f'{words}, or {self.fill}' if self.fill is not None else words


def key(default: object, meaning: str, **declared) -> typing.Any:
  """The dataclass field of a key; see `Key` for what else can be declared."""
  return dataclasses.field(default=default, metadata={'key': Key(default, meaning, **declared)})


def section(kind: type, meaning: str, effect: str = RESULTS) -> typing.Any:
  """The dataclass field of a section of keys. `effect`: that of keys that declare none."""
  metadata = {'section': kind, 'meaning': meaning, 'effect': effect}
  return dataclasses.field(default_factory=kind, metadata=metadata)


def declared(config: type) -> dict[str, Key]:
  """Every key of a dataclass of sections, by its dotted name: {'model.d_model': Key(…), …}."""
  found = {}
  for field in dataclasses.fields(config):
    if kind := field.metadata.get('section'):
      for name, each in declared(kind).items():
        effect = each.effect or field.metadata['effect']
        found[f'{field.name}.{name}'] = dataclasses.replace(each, effect=effect)
    else:
      hint = typing.get_type_hints(config)[field.name]
      found[field.name] = dataclasses.replace(field.metadata['key'], type=hint)
  return found


def wanted(hint: object) -> str:
  """What kind of value a type takes, in words."""
  if typing.get_origin(hint) is Literal:
    return 'one of ' + ' | '.join(map(str, typing.get_args(hint)))
  if typing.get_origin(hint) is tuple:
    return 'a tuple of texts' if _item(hint) is str else 'a tuple of numbers'
  return _WANTED[hint]


def checked(name: str, declaration: Key, value: object) -> object:
  """`value` as the key's type. UserError, naming the key, for another
  type or a value out of range.

  An int passes as a float; a bool is never a number.
  """
  hint = declaration.type
  if not _is_of(hint, value):
    raise _wrong(name, wanted(hint), value)
  if typing.get_origin(hint) is Literal:
    return value
  if typing.get_origin(hint) is tuple:
    for item in value:
      if _item(hint) is str:
        _check_text(name, item)
      else:
        _check_number(name, declaration, float, item, value)
    return tuple(map(_item(hint), value))
  if hint is str:
    _check_text(name, value)
  elif hint is not bool:
    _check_number(name, declaration, hint, value, value)
  return float(value) if hint is float else value


def flatten(config: Mapping, prefix: str = '', leaves: Container[str] = ()) -> dict[str, object]:
  """{'model': {'d_model': 8}} → {'model.d_model': 8}. The values of keys in `leaves` stay whole."""
  flat = {}
  for name, value in config.items():
    if isinstance(value, Mapping) and f'{prefix}{name}' not in leaves:
      flat |= flatten(value, f'{prefix}{name}.', leaves)
    else:
      flat[f'{prefix}{name}'] = value
  return flat


def unflatten(flat: Mapping[str, object]) -> dict:
  """{'model.d_model': 8} → {'model': {'d_model': 8}}."""
  nested = {}
  for name, value in flat.items():
    *sections, leaf = name.split('.')
    place = nested
    for each in sections:
      place = place.setdefault(each, {})
    place[leaf] = value
  return nested


def listed(changed: Mapping[str, tuple[object, object]], keys: Iterable[str], here: str) -> str:
  """These keys of `differences` in words, with both values; `here`: what to call the second."""
  return ', '.join(f'{key} ({changed[key][0]!r} there, {changed[key][1]!r} {here})' for key in keys)


def differences(old: Mapping, new: Mapping) -> dict[str, tuple[object, object]]:
  """Dotted keys whose values differ between two nested dicts, with both values.

  None stands for an absent key. A list equals a tuple of its items, since JSON has no tuples.
  """
  old, new = _comparable(old), _comparable(new)
  return {
    name: (old.get(name), new.get(name))
    for name in sorted(old.keys() | new.keys())
    if old.get(name) != new.get(name)
  }


def nearest(name: str, valid: Iterable[str]) -> str:
  """The name that a mistyped dotted key was probably meant to be, or '' if none is near."""
  best = max(valid, key=lambda other: _nearness(name, other))
  return best if _nearness(name, best) >= 0.75 else ''


def _is_of(hint, value):
  if isinstance(value, bool) or hint is bool:
    return isinstance(value, bool) and hint is bool
  if typing.get_origin(hint) is Literal:
    return value in typing.get_args(hint) and type(value) in map(type, typing.get_args(hint))
  if typing.get_origin(hint) is tuple:
    return isinstance(value, (tuple, list)) and all(_is_of(_item(hint), item) for item in value)
  return isinstance(value, (int, float) if hint is float else hint)


def _item(hint):
  """The type of a tuple's items: float or str."""
  return typing.get_args(hint)[0]


def _check_text(name, value):
  """Raises UserError for line breaks and other control characters, which would break the commands
  and lines that a value goes into.
  """
  if any(unicodedata.category(c) in ('Cc', 'Cs', 'Zl', 'Zp') for c in value):
    raise _wrong(name, 'text without line breaks and control characters', value)


def _check_number(name, declaration, kind, number, value):
  """Raises UserError unless `number` is in range. `value`: what the error shows, for an item the
  whole tuple.
  """
  d = declaration
  if number == d.fill and d.fill is not None:
    return
  if isinstance(number, float) and not math.isfinite(number):
    raise _wrong(name, 'finite', value)
  lower = _words(at_least=d.at_least, above=d.above)
  too_low = (d.at_least is not None and number < d.at_least) or (
    d.above is not None and number <= d.above
  )
  if too_low or (d.below is not None and number >= d.below):
    words = ' and '.join(filter(None, (lower, _words(below=d.below))))
    raise _wrong(name, words + (f', or {d.fill}' if d.fill is not None else ''), value)
  most = d.at_most if d.at_most is not None else LARGEST_INT if kind is int else _LARGEST_FLOAT
  if number > most:
    raise _wrong(name, f'at most {most:,}' if kind is int else f'at most {most:g}', value)
  if kind is int:
    if number < -LARGEST_INT:
      raise _wrong(name, f'at least -{LARGEST_INT:,}', value)
  elif number and not _SMALLEST_FLOAT <= abs(number) <= _LARGEST_FLOAT:
    raise _wrong(name, '0 or a number that float32 can hold', value)


def _wrong(name, words, value):
  # Python refuses to write out integers of thousands of digits.
  huge = isinstance(value, int) and value.bit_length() > 1000
  shown = f'an integer of {value.bit_length()} bits' if huge else repr(value)
  shown = shown if len(shown) <= 100 else f'{shown[:100]}…'
  return UserError(f'config.{name} must be {words}, not {shown}')


def _words(at_least=None, above=None, at_most=None, below=None):
  number = lambda bound: f'{bound:,}' if isinstance(bound, int) else f'{bound:g}'
  for words, bound in (
    ('at least', at_least),
    ('greater than', above),
    ('at most', at_most),
    ('below', below),
  ):
    if bound is not None:
      return f'{words} {number(bound)}'
  return ''


def _comparable(config):
  return {
    name: list(value) if isinstance(value, tuple) else value
    for name, value in flatten(config).items()
  }


def _nearness(name, other):
  (section, _, leaf), (other_section, _, other_leaf) = name.rpartition('.'), other.rpartition('.')
  ratio = difflib.SequenceMatcher(None, leaf, other_leaf).ratio()
  if leaf and other_leaf.endswith(f'_{leaf}'):
    ratio = max(ratio, 0.9)
  # A right name in the wrong section is still near.
  return ratio if section == other_section else ratio - 0.05
