"""Plain text: a file is a document, or the parts between separators are."""

import re
from collections.abc import Iterator
from pathlib import Path

from moe.data.compression import Stream
from moe.data.readers.base import CHUNK, BadRow, Rules, too_long


def read(path: Path, file: Stream, text_key: str, rules: Rules) -> Iterator[str]:
  """See `read_texts`. `text_key` has no meaning here."""
  del text_key
  if rules.separator:
    yield from _separated(path, file, rules)
    return
  raw = file.read(rules.max_bytes + 1)
  if len(raw) > rules.max_bytes:
    rules.on_bad(
      BadRow(f'{path}:1: {too_long("a document", rules)}, or cut the file by data.separator')
    )
  elif (text := _decoded(raw, path, 1, rules)) is not None:
    yield text


def _separated(path, file, rules):
  """The parts between separators. A line end within a separator matches one of any kind.
  Parts of white space alone are left out.
  """
  ends = re.escape(rules.separator).replace('\\\n', r'(?:\r\n?|\n)')
  cut, held, line, scanned, skipping = re.compile(ends.encode()), b'', 1, 0, False
  margin = 2 * len(rules.separator.encode())  # a separator may lie across two reads
  while True:
    chunk = file.read(CHUNK)
    held, begin = held + chunk, 0
    end = max(len(held) - margin, 0) if chunk else len(held)
    for match in cut.finditer(held, scanned, end):
      if chunk and match.end() == end:  # what comes next may belong to it
        break
      if not skipping:
        yield from _part(held[begin : match.start()], path, line, rules)
      line += held.count(b'\n', begin, match.end())
      begin, skipping = match.end(), False
    if not skipping and len(held) - begin > rules.max_bytes:
      rules.on_bad(BadRow(f'{path}:{line}: {too_long("a document", rules)}'))
      skipping = True
    if not chunk:
      if not skipping:
        yield from _part(held[begin:], path, line, rules)
      return
    if skipping:
      line += held.count(b'\n', begin, max(end - margin, begin))
      begin = max(end - margin, begin)
    held, scanned = held[begin:], max(end - margin - begin, 0)


def _part(raw, path, line, rules):
  if len(raw) > rules.max_bytes:
    rules.on_bad(BadRow(f'{path}:{line}: {too_long("a document", rules)}'))
    return
  text = _decoded(raw, path, line, rules)
  if text and not text.isspace():
    yield text


def _decoded(raw, path, line, rules):
  try:
    return raw.decode()
  except UnicodeDecodeError as error:
    line += raw.count(b'\n', 0, error.start)
    rules.on_bad(BadRow(f'{path}:{line}: not UTF-8 (byte {error.start})'))
    return None
