"""A folder that appears whole or not at all."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from moe import files
from moe.errors import UserError, of_file
from moe.run import folder


def new_folder(flag: str, written: str | os.PathLike) -> Path:
  """The path of a folder that is to be made. UserError if it exists already, is in a bucket or has
  a name that cannot be used.
  """
  if '://' in os.fspath(written):
    raise UserError(f'--{flag}={written} must be a folder of this machine')
  try:
    path = Path(folder(written))
  except UserError as error:
    raise UserError(str(error).replace('--workdir', f'--{flag}')) from error
  if os.path.lexists(path):
    raise UserError(f'--{flag}={path} exists: name a folder that does not')
  return path


@contextlib.contextmanager
def appearing(path: Path, size: int) -> Iterator[Path]:
  """Yields an empty folder to fill. It is renamed to `path` if the block succeeds, and deleted if
  the block raises.

  Args:
    size: bytes that will be written.

  UserError if the disk has less room, the folder cannot be written, or another process writes it.
  """
  parent = path.parent
  files.try_folder(parent, path.name)
  free = shutil.disk_usage(parent).free
  if free < size:
    raise UserError(
      f'not enough room in {parent}: {size / 1e9:,.2f} GB needed, {free / 1e9:,.2f} GB free'
    )
  beside = parent / f'.{path.name}.partial'
  beside.mkdir(exist_ok=True)

  def refuse(_):
    raise UserError(f'{beside} is being written by another process')

  with files.locked(beside, refuse):
    try:
      # Removes what a killed process has left.
      _empty(beside)
      yield beside
      _sync(beside)
      os.rename(beside, path)
    except OSError as error:
      raise of_file(error, path) from error
    finally:
      if beside.exists():
        shutil.rmtree(beside, ignore_errors=True)


def _sync(path):
  """Returns when every file below `path` is on disk, so that a crash of the machine leaves none of
  them empty.
  """
  for each in path.rglob('*'):
    if each.is_file():
      descriptor = os.open(each, os.O_RDONLY)
      try:
        os.fsync(descriptor)
      finally:
        os.close(descriptor)


def _empty(path):
  for each in path.iterdir():
    shutil.rmtree(each) if each.is_dir() and not each.is_symlink() else each.unlink()
