"""Sources of text as a stream of documents, each of a domain, each either training or held out."""

import dataclasses
import functools
import hashlib
import math
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from moe.config import DataConfig
from moe.data import builtin, matching
from moe.data.chat import conversations
from moe.data.readers import BadRow, Rules, read_texts
from moe.errors import UserError


class Document(NamedTuple):
  # Never empty, always encodable as UTF-8; a conversation as chat/conversations.py writes it.
  text: str
  domain: str
  held_out: bool


@dataclasses.dataclass(frozen=True)
class Source:
  """A domain: where its text comes from, and its share among the domains' weights."""

  domain: str
  weight: float
  files: tuple[Path, ...] = ()  # sorted; empty for a domain of `builtin`
  text_key: str = ''  # of its rows; '': data.text_key


class MissingFiles(UserError):
  """Files of a source are not there (any more)."""


class End(NamedTuple):
  """What is held out of a domain with too few documents: the end of one."""

  digest: bytes  # of the whole document; its copies are cut in the same way
  begin: int  # the first character that is held out


_ENTRY = re.compile(
  r'(?P<domain>[\w.-]+)(@(?P<weight>[^=:]*))?(:(?P<text_key>[^=]+))?=(?P<files>.+)', re.DOTALL
)
_FORM = 'DOMAIN[@WEIGHT][:TEXT_KEY]=FILES'


def parse_sources(spec: str, key: str = 'data.sources') -> tuple[Source, ...]:
  """`spec` (see data.sources in moe/config.py) → sources, in the order written.

  UserError that names `key` for a malformed entry, a weight that is no positive number, a domain
  with two weights, and files that are not there.
  """
  return parse_sources_and_tell(spec, key)[0]


def parse_and_tell(data: DataConfig) -> tuple[tuple[Source, ...], tuple[Source, ...], list[str]]:
  """(sources, validation sources, what a user should know about them).
  UserError for a file that is in both.
  """
  sources, notes = parse_sources_and_tell(data.sources, 'data.sources')
  if data.format == 'chat':
    _check_conversations(sources, 'data.sources')
  if not data.validation_sources:
    return sources, (), notes
  held_out, more = parse_sources_and_tell(data.validation_sources, 'data.validation_sources')
  if data.format == 'chat':
    _check_conversations(held_out, 'data.validation_sources')
  trained_on = {matching.identity(path): path for source in sources for path in source.files}
  both = [path for s in held_out for path in s.files if matching.identity(path) in trained_on]
  if both or (any(not s.files for s in held_out) and any(not s.files for s in sources)):
    named = f'{len(both)} files, such as {both[0]}' if both else "'builtin'"
    raise UserError(
      f'data.sources and data.validation_sources both have {named}: '
      'text cannot be trained on and held out'
    )
  return sources, held_out, notes + more


def _check_conversations(sources, key):
  if any(not source.files for source in sources):
    raise UserError(
      f"{key}: 'builtin' is text, and data.format=chat needs conversations: give {_FORM}"
    )


def parse_sources_and_tell(spec: str, key: str) -> tuple[tuple[Source, ...], list[str]]:
  """As `parse_sources`, and what a user should know about the sources."""
  found: dict[str, Source] = {}
  notes, owner = [], {}
  matching.forget()
  for domain, weight, pattern, text_key in _entries(spec, key):
    matched = () if pattern is None else _matches(pattern, domain, key, notes)
    known = found.get(domain)
    if known and (known.files == () or matched == ()):
      raise UserError(
        f'{key}: domain {domain!r} stands for text of `builtin`: give the other one another name'
      )
    if known and known.text_key != text_key:
      raise UserError(f'{key}: domain {domain!r} has two text keys: give one, or two domains')
    by_identity = {matching.identity(path): path for path in matched}
    by_identity |= {matching.identity(path): path for path in (known.files if known else ())}
    found[domain] = Source(domain, weight, tuple(sorted(by_identity.values())), text_key)
    twice = [path for name, path in by_identity.items() if owner.setdefault(name, domain) != domain]
    if twice:
      notes.append(
        f'{key}: {len(twice)} files of domain {domain!r}, such as {twice[0]}, '
        'belong to another domain too'
      )
  return tuple(found.values()), notes


def weights(spec: str, key: str = 'data.sources') -> dict[str, float]:
  """Weights by domain as written in `spec`; looks at no file."""
  return {domain: weight for domain, weight, *_ in _entries(spec, key)}


def fingerprint(source: Source) -> object:
  """What identifies a source's text in the settings of prepared data:
  its files' contents, wherever they lie.
  """
  if not source.files:
    return 'builtin'
  with ThreadPoolExecutor() as pool:
    digests = sorted(pool.map(_digest_of_file, source.files))
  return {
    'files': len(source.files),
    'bytes': sum(path.stat().st_size for path in source.files),
    'sha256': hashlib.sha256(b''.join(digests)).hexdigest()[:32],
    **({'text_key': source.text_key} if source.text_key else {}),
  }


def stamp(source: Source) -> str:
  """A digest that changes with any write to a source's files, made without reading them."""
  listed = hashlib.blake2b(source.text_key.encode(), digest_size=16)
  for path in source.files:
    status = path.stat()
    line = f'{path}\t{status.st_size}\t{status.st_mtime_ns}\t{status.st_ctime_ns}\n'
    listed.update(line.encode('utf-8', 'surrogateescape'))
  return listed.hexdigest()


def fingerprint_of_format_1(source: Source) -> object:
  """The `fingerprint` in prepared data of format 1: it is made of paths and sizes."""
  if not source.files:
    return 'builtin'
  listed = '\n'.join(f'{path}\t{path.stat().st_size}' for path in source.files)
  raw = listed.encode('utf-8', 'surrogateescape')
  return {
    'files': len(source.files),
    'bytes': sum(path.stat().st_size for path in source.files),
    'blake2b': hashlib.blake2b(raw, digest_size=8).hexdigest(),
  }


def _digest_of_file(path):
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').digest()


def documents(config: DataConfig) -> Iterator[Document]:
  """Every document with text, source by source. One file, or a part of it, is in memory at a time.

  With validation_sources, all of `sources` is for training and all of those is held out. Else a
  hash of its text decides whether a document is in the share `holdout` that is held out, so that no
  copy of a held-out document is trained on; for `builtin` it is a hash of the document's origin. A
  domain with too few documents for that has the end of its longest held out (`find_ends`).
  UserError for text that cannot be read.
  """
  return read(config, [])


def read(config: DataConfig, bad: list[BadRow]) -> Iterator[Document]:
  """As `documents`; rows that data.bad_rows leaves out go to `bad`."""
  sources, held_out, _ = parse_and_tell(config)
  share = 0.0 if config.validation_sources else config.holdout
  ends = find_ends(config)
  for source in sources:
    end = ends.get(source.domain)
    for document in _source_documents(source, share, config, bad):
      yield from [document] if end is None else _cut(document, end)
  for source in held_out:
    for document in _source_documents(source, 1.0, config, bad):
      yield document._replace(held_out=True)


def whole(sources: Iterable[Source], config: DataConfig, bad: list[BadRow]) -> Iterator[Document]:
  """Every document of `sources`, all held out; as `read` otherwise."""
  for source in sources:
    yield from _source_documents(source, 1.0, config, bad)


def find_ends(config: DataConfig) -> dict[str, End]:
  """{domain: where to cut} for domains with so few documents that the hash leaves none to train on,
  or none held out. Conversations are never cut.

  Reads a domain only until it has both, which takes about 1 / holdout documents.
  """
  ends = {}
  if config.validation_sources or not config.holdout or config.format == 'chat':
    return ends
  for source in parse_and_tell(config)[0]:
    size, longest, sides = 0, '', set()
    for document in _source_documents(source, config.holdout, config, []):
      size += len(document.text)
      longest = max(longest, document.text, key=len)
      sides.add(document.held_out)
      if len(sides) == 2:
        break
    if len(sides) == 1 and len(longest) > 1:
      held_out = min(max(1, round(size * config.holdout)), len(longest) // 2)
      begin = len(longest) - held_out
      line = longest.rfind('\n', begin // 2, begin) + 1  # a line begins there, if it is near
      begin = line if begin - line < held_out else begin
      ends[source.domain] = End(_digest(longest), begin)
  return ends


def _cut(document, end):
  if _digest(document.text) != end.digest:
    yield document._replace(held_out=False)
    return
  yield document._replace(text=document.text[: end.begin], held_out=False)
  yield document._replace(text=document.text[end.begin :], held_out=True)


def _digest(text):
  return hashlib.blake2b(text.encode(), digest_size=16).digest()


def chosen(identity: str, share: float) -> bool:
  """Whether `identity` falls in a pseudo-random `share` of all identities:
  the same on every machine and run.
  """
  digest = hashlib.blake2b(identity.encode('utf-8', 'surrogatepass'), digest_size=8).digest()
  return int.from_bytes(digest, 'big') < share * 2**64


def _source_documents(source, holdout, config, bad):
  if not source.files:
    for document in _builtin():
      if document.domain == source.domain:
        held_out = chosen(document.origin, holdout)
        yield Document(document.text, source.domain, held_out)
    return
  rules = Rules(int(config.max_document_mb * 1e6), _unescaped(config.separator))
  if config.bad_rows == 'skip':
    rules = rules._replace(on_bad=bad.append)
  if config.format == 'chat':
    rules = rules._replace(text_of=conversations.text_of)
  for path in source.files:
    for text in read_texts(path, source.text_key or config.text_key, rules):
      if text:
        yield Document(text, source.domain, chosen(text, holdout))


def _unescaped(separator):
  """Replaces \\n, \\r, \\t and \\\\ by the characters that they stand for:
  a line end is hard to write in a shell's argument.
  """
  named = {'n': '\n', 'r': '\r', 't': '\t', '\\': '\\'}
  return re.sub(r'\\([nrt\\])', lambda match: named[match[1]], separator)


@functools.cache
def _builtin():
  """The built-in corpus, 14 MB. It is kept because it is read twice,
  and extracting docstrings takes seconds.
  """
  return tuple(builtin.documents())


def _entries(spec, key):
  """(domain, weight, files or None for `builtin`, text key) of each entry;
  checks everything that needs no file.
  """
  parts = (part.replace('\\;', ';').strip() for part in re.split(r'(?<!\\);', spec))
  entries = [part for part in parts if part]
  if not entries:
    raise UserError(f"{key} is empty: give 'builtin' or {_FORM}")
  weight_of: dict[str, float] = {}
  made = []
  for entry in dict.fromkeys(entries):
    if entry == 'builtin':
      made += [(domain, weight, None, '') for domain, weight in builtin.WEIGHTS.items()]
      continue
    match = _ENTRY.fullmatch(entry)
    if not match:
      raise UserError(f"{key}: {entry!r} is neither 'builtin' nor {_FORM}")
    weight = _weight(match['weight'], entry, key)
    made.append((match['domain'], weight, match['files'].strip(), match['text_key'] or ''))
  for domain, weight, *_ in made:
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


def _matches(pattern, domain, key, notes):
  found = matching.find(pattern)
  if not found.files:
    written = f'; {found.outputs[0]} is what a run wrote' if found.outputs else ''
    raise MissingFiles(f'{key}: no file matches {pattern!r} (domain {domain!r}){written}')
  for left_out, why in (
    (found.links, 'are reached again by links, and count once'),
    (found.outputs, 'were written by a run, and are left out'),
  ):
    if left_out:
      notes.append(f'{key}: {len(left_out)} paths of {pattern!r}, such as {left_out[0]}, {why}')
  return found.files
