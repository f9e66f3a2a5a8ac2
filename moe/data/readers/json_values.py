"""JSON: an object a line, values one after another, or an array."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

from moe.data.compression import Stream
from moe.data.readers.base import CHUNK, BadRow, Rules, texts_of_row, too_long
from moe.errors import UserError


def read_lines(path: Path, file: Stream, text_key: str, rules: Rules) -> Iterator[str]:
  """See `read_texts`. Every line is an object."""
  for number in itertools.count(1):
    raw = file.readline(rules.max_bytes + 1)
    if not raw:
      return
    where = f'{path}:{number}'
    if len(raw) > rules.max_bytes and not raw.endswith(b'\n'):
      rules.on_bad(BadRow(f'{where}: {too_long("a line", rules)}'))
      while raw and not raw.endswith(b'\n'):
        raw = file.readline(CHUNK)
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
    yield from texts_of_row(row, where, text_key, rules)


def read_values(path: Path, file: Stream, text_key: str, rules: Rules) -> Iterator[str]:
  """See `read_texts`. The file has values one after another, or one array of them;
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
    yield from texts_of_row(ahead.value(decoder), where, text_key, rules)
  if array:
    raise UserError(f'{path}:{ahead.line}: not JSON: the file ends within its array')


class _Ahead:
  """The text of a file, read only as far as the next JSON value needs."""

  def __init__(self, path, file, rules):
    self._path, self._file, self._rules = path, file, rules
    self._text, self._raw, self.line = '', b'', 1

  def skip(self, characters: str) -> str:
    """Skips `characters` and returns the first other one; '' at the end."""
    while True:
      rest = self._text.lstrip(characters)
      self.take(len(self._text) - len(rest))
      if rest or not self._more(CHUNK):
        return self._text[:1]

  def take(self, count: int) -> None:
    self.line += self._text.count('\n', 0, count)
    self._text = self._text[count:]

  def value(self, decoder: json.JSONDecoder) -> object:
    """Reads the JSON value that begins here. UserError if there is none."""
    while True:
      try:
        value, end = decoder.raw_decode(self._text)
        if end < len(self._text) or not self._more(CHUNK):
          self.take(end)
          return value
      except RecursionError as error:
        raise UserError(f'{self._path}:{self.line}: not JSON: {error}') from error
      except ValueError as error:
        where = f'{self._path}:{self.line}'
        if len(self._text) > self._rules.max_bytes:
          raise UserError(f'{where}: no JSON, or {too_long("a value", self._rules)}') from error
        if not self._more(max(CHUNK, len(self._text))):  # doubles the text each time
          raise UserError(f'{where}: not JSON: {error}') from error

  def _more(self, count):
    """Reads `count` more bytes; False at the end."""
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
