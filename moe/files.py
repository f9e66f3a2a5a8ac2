"""Small files: replaced atomically, locked, tried before work begins,
and JSON that every program can read.
"""

import contextlib
import fcntl
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from moe.errors import UserError, of_file


def replace(path: str | os.PathLike, content: str | bytes) -> None:
  """Replaces a file atomically, by writing it beside its place and renaming it:
  a reader finds the old content or the new one, whole.
  """
  path = Path(path)
  beside = path.with_name(f'.{path.name}.tmp')
  with open(beside, 'wb') as file:
    file.write(content.encode('utf-8') if isinstance(content, str) else content)
    file.flush()
    os.fsync(file.fileno())
  os.replace(beside, path)


def plain(value: object) -> object:
  """A value as JSON types. A number that JSON lacks becomes None, an array a list; a float keeps
  every bit.
  """
  if isinstance(value, Mapping):
    return {key: plain(item) for key, item in value.items()}
  if hasattr(value, 'tolist'):
    value = value.tolist()
  if isinstance(value, (list, tuple)):
    return [plain(item) for item in value]
  return None if isinstance(value, float) and not math.isfinite(value) else value


def to_json(value: object, indent: int | None = None, ensure_ascii: bool = True) -> str:
  """Strict JSON of `plain(value)`: no NaN and no Infinity, which most parsers refuse."""
  return json.dumps(plain(value), indent=indent, ensure_ascii=ensure_ascii, allow_nan=False)


def read_json(path: str | os.PathLike) -> dict:
  """A JSON object from a file. ValueError if the file holds anything else,
  OSError if it cannot be read.
  """
  return _of_type(_parsed(path), dict)


def read_json_list(path: str | os.PathLike) -> list[dict]:
  """A list of JSON objects from a file. ValueError and OSError as in `read_json`."""
  return [_of_type(item, dict) for item in _of_type(_parsed(path), list)]


def stored_key(workdir: str | os.PathLike, section: str, key: str) -> str:
  """A key of a run's config.json, as text; '' if it cannot be read."""
  try:
    return str(read_json(Path(workdir) / 'config.json')[section][key])
  except (OSError, ValueError, LookupError, TypeError):
    return ''


@contextlib.contextmanager
def locked(
  path: str | os.PathLike, when_held: Callable[[str], None] = lambda content: None
) -> Iterator[int]:
  """Holds the lock of a folder, or of a file, which it makes if need be;
  yields its descriptor, which child processes may inherit.

  If another process holds the lock, calls `when_held` with the file's content,
  to raise or to print something, and then waits.
  The lock ends with the last process that has the descriptor, however that process ends.
  """
  is_folder = os.path.isdir(path)
  descriptor = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR | os.O_CREAT, 0o666)
  try:
    try:
      fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      when_held('' if is_folder else Path(path).read_bytes().decode('utf-8', errors='replace'))
      fcntl.flock(descriptor, fcntl.LOCK_EX)
    yield descriptor
  finally:
    os.close(descriptor)


def try_folder(folder: str | os.PathLike, what: str) -> None:
  """Makes a folder, and writes and deletes a file in it.
  If that fails, UserError names the folder and `what` it is for.
  """
  folder = Path(folder)
  trial = folder / f'.trial-{os.getpid()}'
  try:
    folder.mkdir(parents=True, exist_ok=True)
    trial.write_bytes(b'0' * 4096)
    trial.unlink()
  except OSError as error:
    with contextlib.suppress(OSError):
      trial.unlink()
    raise type(of_file(error))(
      f'cannot write {what} in {folder}: {error.filename or folder}: {error.strerror or error}'
    ) from error


def must_be_file(path: Path) -> None:
  """Raises UserError if a path exists and is not a file."""
  if path.exists() and not path.is_file():
    raise UserError(f'{path} must be a file: it is a folder or something else; move it away')


def must_be_folder(path: Path) -> None:
  """Raises UserError if a path is a broken link, or exists and is not a folder."""
  if (path.exists() or path.is_symlink()) and not path.is_dir():
    raise UserError(f'{path} must be a folder: it is a file or a broken link; move it away')


def _parsed(path):
  try:
    return json.loads(Path(path).read_bytes().decode('utf-8'))
  except UnicodeDecodeError as error:
    raise ValueError('not UTF-8') from error
  except RecursionError as error:
    raise ValueError('nested too deep') from error


def _of_type(value, kind):
  if not isinstance(value, kind):
    raise ValueError(f'a {type(value).__name__} where a {kind.__name__} should be')
  return value
