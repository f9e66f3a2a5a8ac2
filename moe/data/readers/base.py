"""What the readers of all formats share: rules, and what makes a row a text."""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, NoReturn

from moe.errors import UserError

# Bytes or characters that are read at once.
CHUNK = 1 << 20


class BadRow(UserError):
  """A row, or a plain file, that cannot be used as text; those beside it may be fine."""


def _refuse(error: BadRow) -> NoReturn:
  raise error


class Rules(NamedTuple):
  """How files are read. See the keys of `data` in moe/config.py."""

  max_bytes: int = 64_000_000  # of one document, row or line; data.max_document_mb
  separator: str = ''  # cuts plain text into documents; '': a file is one
  on_bad: Callable[[BadRow], None] = _refuse  # data.bad_rows
  # data.format=chat: (JSON object, text_key, FILE:LINE) → text, or BadRow.
  text_of: Callable[[dict, str, str], str] | None = None


def texts_of_row(row: object, where: str, text_key: str, rules: Rules) -> Iterator[str]:
  """The text of a JSON value, if it is an object that has one; `where` is FILE:LINE."""
  if not isinstance(row, dict):
    rules.on_bad(BadRow(f'{where}: a JSON object is needed, not {_type(row)}'))
  elif rules.text_of:
    try:
      text = rules.text_of(row, text_key, where)
    except BadRow as error:
      rules.on_bad(error)
    else:
      yield from checked(text, where, text_key, rules)
  elif text_key not in row:
    rules.on_bad(BadRow(f'{where}: no field {text_key!r} (data.text_key); the row has {some(row)}'))
  else:
    yield from checked(row[text_key], where, text_key, rules)


def checked(text: object, where: str, text_key: str, rules: Rules) -> Iterator[str]:
  """The value of a field, if it is a text that is short enough."""
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
    rules.on_bad(BadRow(f'{where}: {too_long("a document", rules)}'))
    return
  yield text


def too_long(what: str, rules: Rules) -> str:
  """The words of an error about `what`, which is over data.max_document_mb."""
  return f'{what} of more than data.max_document_mb={rules.max_bytes / 1e6:g} MB: raise it'


def _type(value):
  return 'null' if value is None else type(value).__name__


def some(names: Iterable[str]) -> str:
  """The first eight names, for an error."""
  return ', '.join(map(repr, list(names)[:8])) or 'none'
