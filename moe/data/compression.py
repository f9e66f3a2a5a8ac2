"""Decompressed streams of files in gzip, zstd, bzip2 or xz, which their first bytes tell apart."""

import bz2
import contextlib
import gzip
import io
import lzma
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import zstandard

from moe.errors import UserError, of_system

_BY_MAGIC = {
  b'\x1f\x8b': 'gzip',
  b'\x28\xb5\x2f\xfd': 'zstd',
  b'BZh': 'bzip2',
  b'\xfd7zXZ\x00': 'xz',
}
_SUFFIXES = {
  '.gz': 'gzip',
  '.gzip': 'gzip',
  '.zst': 'zstd',
  '.zstd': 'zstd',
  '.bz2': 'bzip2',
  '.xz': 'xz',
}
# Largest ratio of unpacked to packed size: text stays far below, a decompression bomb does not.
_MOST_EXPANSION = 200
_BUFFER = 1 << 20  # bytes; holds a first line, which tells the format
_ZSTD_WINDOW = 1 << 31  # large dumps are published with `zstd --long=31`, which needs it
_ZSTD_CHUNK = 4096  # bytes that unpack to 128 MB at most


class Stream(io.BufferedReader):
  """Decompressed bytes. `compressed`: the name of the compressor, '' without one."""

  compressed: str = ''


def suffix_within(path: Path) -> str:
  """The lower-case suffix of a name, ignoring a compressor's: .json for c4-train.json.gz."""
  name = Path(path.name.lower())
  return Path(name.stem).suffix if name.suffix in _SUFFIXES else name.suffix


@contextlib.contextmanager
def open_bytes(path: Path, free: int) -> Iterator[Stream]:
  """Opens the file's bytes, decompressed. UserError if its first bytes do not fit its name.

  Reading raises UserError once the bytes exceed both 4 · `free` and 200 times the file's size, and
  the decompressor's own errors, which `errors` turns into one line.
  """
  with open(path, 'rb') as file:
    head = file.peek(8)
    kind = next((kind for magic, kind in _BY_MAGIC.items() if head.startswith(magic)), '')
    if not kind and head and (wanted := _SUFFIXES.get(path.suffix.lower())):
      raise UserError(f'{path}: damaged {wanted} file: it does not begin like one')
    most = max(4 * free, _MOST_EXPANSION * os.fstat(file.fileno()).st_size) if kind else None
    stream = Stream(_Counted(path, _OPEN[kind](file) if kind else file, most), _BUFFER)
    stream.compressed = kind
    with contextlib.closing(stream):
      yield stream


@contextlib.contextmanager
def errors(path: Path) -> Iterator[None]:
  """Turns errors of reading a file into a UserError of one line that names it."""
  try:
    yield
  except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError, zstandard.ZstdError) as error:
    raise UserError(f'{path}: damaged {_name(error, path)} file: {error}') from error
  except OSError as error:
    if error.errno is None:  # bz2 raises this for damaged data
      raise UserError(f'{path}: damaged {_name(error, path)} file: {error}') from error
    raise of_system(error, f'{path}: {error.strerror or error}') from error


def unpacked(contents: bytes, kind: str, most: int) -> bytes:
  """`contents` decompressed. ValueError, or an error of the decompressor,
  if damaged or over `most` bytes.
  """
  with _OPEN[kind](io.BytesIO(contents)) as file:
    raw = file.read(most + 1)
  if len(raw) > most:
    raise ValueError(f'unpacks to more than {most} bytes')
  return raw


def open_zstd(file: io.BufferedIOBase) -> io.BufferedReader:
  """The decompressed stream of an open file of zstd frames.
  EOFError where the last one is cut short.
  """
  return io.BufferedReader(_Zstd(file))


class _Counted(io.RawIOBase):
  """Passes bytes on. UserError after more than `most` of them (None: no limit)."""

  def __init__(self, path, file, most):
    self._path, self._file, self._most, self._count = path, file, most, 0

  def readable(self) -> bool:
    return True

  def readinto(self, buffer) -> int:
    view, count = memoryview(buffer), 0
    while count < len(view) and (more := self._file.readinto(view[count:])):
      count += more
    self._count += count
    if self._most is not None and self._count > self._most:
      raise UserError(
        f'{self._path}: unpacks to more than {self._most} bytes, over {_MOST_EXPANSION} times its '
        'size, which no text does: if it is text, raise data.max_document_mb'
      )
    return count


class _Zstd(io.RawIOBase):
  """Decompresses zstd frames. zstandard's own reader takes a truncated frame for a whole one."""

  def __init__(self, file):
    self._file, self._frame, self._ready = file, None, memoryview(b'')

  def readable(self) -> bool:
    return True

  def readinto(self, buffer) -> int:
    while not self._ready:
      raw = b''
      if self._frame and self._frame.eof:
        raw, self._frame = self._frame.unused_data, None
      raw = raw or self._file.read(_ZSTD_CHUNK)
      if not raw:
        if self._frame:
          raise EOFError('it ends within a frame')
        return 0
      if not self._frame:
        decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
        self._frame = decompressor.decompressobj()
      self._ready = memoryview(self._frame.decompress(raw))
    count = min(len(buffer), len(self._ready))
    buffer[:count], self._ready = self._ready[:count], self._ready[count:]
    return count


_OPEN = {
  'gzip': lambda file: gzip.GzipFile(fileobj=file),
  'zstd': open_zstd,
  'bzip2': bz2.BZ2File,
  'xz': lzma.LZMAFile,
}


def _name(error, path):
  if isinstance(error, (gzip.BadGzipFile, zlib.error)):
    return 'gzip'
  return _SUFFIXES.get(path.suffix.lower(), 'compressed')
