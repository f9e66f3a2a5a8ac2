"""Hand-made archives of each ecosystem, and package clients that need no network."""

import hashlib
import io
import lzma
import tarfile
import zipfile
from pathlib import Path

from experiments.corpora import archives
from experiments.corpora.archives import Package


def tar(files: dict[str, bytes], prefix: str = '') -> bytes:
  written = io.BytesIO()
  with tarfile.open(fileobj=written, mode='w') as archive:
    for name, contents in files.items():
      entry = tarfile.TarInfo(prefix + name)
      entry.size = len(contents)
      archive.addfile(entry, io.BytesIO(contents))
  return written.getvalue()


def deb(files: dict[str, bytes]) -> bytes:
  """A .deb: an `ar` archive of the version, a dummy control member, and data.tar.xz.
  Members of odd length are padded.
  """
  members = {
    'debian-binary': b'2.0\n',
    'control.tar.xz': b'odd',
    'data.tar.xz': lzma.compress(tar(files, './')),
  }
  header = lambda name, size: f'{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{size:<10}`\n'.encode()
  parts = (
    header(name, len(data)) + data + b'\n' * (len(data) % 2) for name, data in members.items()
  )
  return b'!<arch>\n' + b''.join(parts)


def wheel(files: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
  written = io.BytesIO()
  with zipfile.ZipFile(written, 'w') as archive:
    for name, contents in files.items():
      archive.writestr(zipfile.ZipInfo(name), contents, compression)
  return written.getvalue()


MAKE = {'debian': deb, 'pypi': wheel, 'npm': tar}


def cached(
  cache: Path, ecosystem: str, files: dict[str, bytes], name: str = 'novel', version: str = '1.0'
) -> Package:
  """A package of `files` whose archive lies in `cache`."""
  contents = MAKE[ecosystem](files)
  package = Package(ecosystem, name, version, hashlib.sha256(contents).hexdigest(), 'public domain')
  cache.mkdir(parents=True, exist_ok=True)
  archives.place(package, cache).write_bytes(contents)
  return package


def client(directory: Path, name: str, script: str) -> None:
  """A program `name` in `directory` that runs `script` of sh."""
  directory.mkdir(exist_ok=True)
  (directory / name).write_text(f'#!/bin/sh\n{script}\n')
  (directory / name).chmod(0o755)
