"""Finds the files that a study names: in the current folder, or in this package,
wherever it is installed.
"""

from pathlib import Path

from moe.errors import UserError

ROOT = Path(__file__).parents[2]
_STUDIES = 'experiments/studies'


def located(path: str) -> str:
  """`path`, or this package's file of that path if there is none in the current folder.
  UserError if both have one.
  """
  here, shipped = Path(path), ROOT / path
  if here.is_absolute() or not shipped.is_file():
    return path
  if here.is_file() and not here.samefile(shipped):
    raise UserError(
      f'{path} is a file here and one of the installed package ({shipped}): '
      'rename yours, or give its full path'
    )
  return path if here.is_file() else str(shipped)


def study(path: str) -> str:
  """The file of a study. `path` may be the bare name of one of this package, such as table1."""
  shipped = f'{_STUDIES}/{path}.py'
  return located(shipped if path.isidentifier() and (ROOT / shipped).is_file() else path)
