"""Books, poems and sayings, each in the file format of its package."""

import json
import re
import struct
import zlib
from collections.abc import Iterator

_COLOUR = re.compile(r'\x1b\[[0-9;]*m')
_CHAPTER = re.compile(r'^chapter (?:[ivxlc]+|\d+)\b.*$', re.IGNORECASE | re.MULTILINE)
_LARGEST = 1 << 29  # bytes of one R object
_LINES = ('paragraphs', 'content', 'para')


def read_fortunes(raw: bytes) -> Iterator[str]:
  """fortune(6): sayings between lines of `%`, colours removed."""
  for saying in re.split(r'^%\n', _COLOUR.sub('', raw.decode()), flags=re.MULTILINE):
    yield re.sub(r'\s*::\s*$', '', saying)


def read_strings(raw: bytes) -> Iterator[str]:
  """A JSON list of texts, such as the chapters of a novel."""
  texts = json.loads(raw)
  if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
    raise ValueError('no JSON list of strings')
  for text in texts:
    # Each line is a paragraph, with white space of its web page around it.
    yield re.sub(r'\s*\n\s*', '\n\n', text)


def read_poems(raw: bytes) -> Iterator[str]:
  """chinese-poetry's JSON: every object that has lines, wherever it is nested, as title,
  author, lines.
  """
  yield from _poems(json.loads(raw))


def _poems(value):
  if isinstance(value, list):
    for item in value:
      yield from _poems(item)
  elif isinstance(value, dict):
    lines = next((value[key] for key in _LINES if isinstance(value.get(key), list)), [])
    if lines and all(isinstance(line, str) for line in lines):
      head = [value.get(key) for key in ('title', 'rhythmic', 'chapter', 'section', 'author')]
      yield '\n'.join([*(text for text in head if isinstance(text, str)), *lines])
    else:
      yield from _poems([item for item in value.values() if isinstance(item, (list, dict))])


def read_r_novels(raw: bytes, without: str = '') -> Iterator[str]:
  """Novels in an R package's lazy-load data (.rdb), chapter by chapter under the title.
  `without`: a title to leave out.

  The file is a sequence of blocks: a length (4 bytes), then a zlib stream of one R object in XDR
  format. PyPI's rdata reads one such object, but no sequence, and depends on pandas and xarray.
  """
  while raw:
    inflate = zlib.decompressobj()
    try:
      value = inflate.decompress(raw[4:], _LARGEST)
    except zlib.error as error:
      raise ValueError(f'no R data compressed by zlib: {error}') from error
    if not inflate.eof:
      raise ValueError(f'R data that is cut short, or unpacks to more than {_LARGEST} bytes')
    raw = inflate.unused_data
    try:
      lines = _character_vector(value)
    except struct.error as error:
      raise ValueError(f'no R object in XDR format: {error}') from error
    title = next((line.strip() for line in lines if line.strip()), '')
    if title and title.casefold() != without.casefold():
      yield from _chapters(title, '\n'.join(lines))


def _chapters(title, novel):
  starts = [match.start() for match in _CHAPTER.finditer(novel)]
  for begin, end in zip(starts, [*starts[1:], len(novel)]):
    chapter = re.sub(
      r'\n+(volume [ivx]+|finis|the end)\s*$', '', novel[begin:end].rstrip(), flags=re.IGNORECASE
    )
    yield f'{title}\n\n{chapter}\n'


def _character_vector(raw):
  """A character vector of R's serialize() in format X, version 2 or 3; [] for another object."""
  if raw[:2] != b'X\n':
    raise ValueError('no R object in XDR format')
  (version,) = struct.unpack_from('>i', raw, 2)
  # Version 3 names the encoding.
  position = 14 if version == 2 else 18 + struct.unpack_from('>i', raw, 14)[0]
  kind, count = struct.unpack_from('>ii', raw, position)
  if kind & 0xFF != 16:  # STRSXP
    return []
  position, lines = position + 8, []
  for _ in range(count):
    _, size = struct.unpack_from('>ii', raw, position)
    lines.append(raw[position + 8 : position + 8 + max(size, 0)].decode())  # -1 is NA
    position += 8 + max(size, 0)
  return lines
