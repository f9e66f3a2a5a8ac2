"""Sources of text as a stream of documents, each of a domain, each either training or held out."""

import dataclasses
import functools
import glob
import hashlib
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from moe.config import DataConfig
from moe.data import builtin
from moe.data.readers import read_texts
from moe.errors import UserError


class Document(NamedTuple):
  text: str  # never empty, always encodable as UTF-8
  domain: str
  held_out: bool


@dataclasses.dataclass(frozen=True)
class Source:
  """A domain: where its text comes from, and its share among the domains' weights."""

  domain: str
  weight: float
  files: tuple[Path, ...] = ()  # sorted; empty for a domain of `builtin`


_ENTRY = re.compile(r'(?P<domain>[\w.-]+)(@(?P<weight>[^=]*))?=(?P<glob>.+)', re.DOTALL)


def parse_sources(spec: str, key: str = 'data.sources') -> tuple[Source, ...]:
  """`spec` (see data.sources in experiments/base.py) → sources, in the order written.

  UserError that names `key` for a malformed entry, a weight that is no positive number, a domain with two weights, and
  a glob that matches no file.
  """
  found: dict[str, Source] = {}
  for domain, weight, pattern in _entries(spec, key):
    files = () if pattern is None else _matches(pattern, domain, key)
    known = found.get(domain)
    if known and (known.files == () or files == ()):
      raise UserError(
        f'{key}: domain {domain!r} stands for text of `builtin`: give the other one another name'
      )
    files = tuple(sorted({*(known.files if known else ()), *files}))
    found[domain] = Source(domain, weight, files)
  return tuple(found.values())


def weights(spec: str, key: str = 'data.sources') -> dict[str, float]:
  """Weights by domain as written in `spec`; looks at no file."""
  return {domain: weight for domain, weight, _ in _entries(spec, key)}


def fingerprint(source: Source) -> object:
  """What identifies a source's text in the settings of prepared data: its files with their sizes in bytes."""
  if not source.files:
    return 'builtin'
  listed = '\n'.join(f'{path}\t{path.stat().st_size}' for path in source.files)
  return {
    'files': len(source.files),
    'bytes': sum(path.stat().st_size for path in source.files),
    'blake2b': hashlib.blake2b(
      listed.encode('utf-8', 'surrogateescape'), digest_size=8
    ).hexdigest(),
  }


def documents(config: DataConfig) -> Iterator[Document]:
  """Every document with text, source by source. One file, or a part of it, is in memory at a time.

  With validation_sources all of `sources` is training and all of those is held out; else a share `holdout` of the
  documents is, by a hash of their text (so a copy of a held-out document is never trained on), or, for `builtin`, of
  the file that it comes from. UserError for text that cannot be read.
  """
  chosen = 0.0 if config.validation_sources else config.holdout
  for source in parse_sources(config.sources):
    yield from _source_documents(source, chosen, config.text_key)
  if config.validation_sources:
    for source in parse_sources(config.validation_sources, 'data.validation_sources'):
      for document in _source_documents(source, 1.0, config.text_key):
        yield document._replace(held_out=True)


def chosen(identity: str, share: float) -> bool:
  """Whether `identity` falls in a pseudo-random `share` of all identities: the same on every machine and run."""
  digest = hashlib.blake2b(identity.encode('utf-8', 'surrogatepass'), digest_size=8).digest()
  return int.from_bytes(digest, 'big') < share * 2**64


def _source_documents(source, holdout, text_key):
  if not source.files:
    for document in _builtin():
      if document.domain == source.domain:
        held_out = chosen(document.origin, holdout)
        yield Document(document.text, source.domain, held_out)
    return
  for path in source.files:
    for text in read_texts(path, text_key):
      if text:
        yield Document(text, source.domain, chosen(text, holdout))


@functools.cache
def _builtin():
  """The built-in corpus, 14 MB, is kept: it is read twice, and extracting docstrings takes seconds."""
  return tuple(builtin.documents())


def _entries(spec, key):
  """(domain, weight, glob or None for `builtin`) of each entry; checks everything that needs no file."""
  entries = [entry.strip() for entry in spec.split(';') if entry.strip()]
  if not entries:
    raise UserError(f"{key} is empty: give 'builtin' or DOMAIN[@WEIGHT]=GLOB")
  weight_of: dict[str, float] = {}
  made = []
  for entry in dict.fromkeys(entries):
    if entry == 'builtin':
      made += [(domain, weight, None) for domain, weight in builtin.WEIGHTS.items()]
      continue
    match = _ENTRY.fullmatch(entry)
    if not match:
      raise UserError(f"{key}: {entry!r} is neither 'builtin' nor DOMAIN[@WEIGHT]=GLOB")
    made.append((match['domain'], _weight(match['weight'], entry, key), match['glob'].strip()))
  for domain, weight, _ in made:
    if weight_of.setdefault(domain, weight) != weight:
      raise UserError(
        f'{key}: domain {domain!r} has two weights, {weight_of[domain]:g} and {weight:g}: give one'
      )
  return made


def _weight(written, entry, key):
  if written is None:
    return 1.0
  try:
    weight = float(written)
  except ValueError:
    weight = math.nan
  if not 0 < weight < math.inf:
    raise UserError(f'{key}: the weight of {entry!r} must be a positive number, not {written!r}')
  return weight


def _matches(pattern, domain, key):
  found = (Path(path) for path in glob.glob(os.path.expanduser(pattern), recursive=True))
  files = tuple(sorted(path for path in found if path.is_file()))
  if not files:
    raise UserError(f'{key}: no file matches {pattern!r} (domain {domain!r})')
  return files
