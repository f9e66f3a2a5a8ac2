"""Finds where the harness declares a task.

The harness's own index parses 14,000 files, which takes half a minute. Here a pattern finds the
names, and the harness is handed only the folders that have them.
"""

import difflib
import functools
import os
import re
from collections.abc import Iterable
from pathlib import Path

from moe.errors import UserError

OURS = Path(__file__).parent / 'yaml'
_DECLARED = re.compile(
  r'^["\']?(task|group|tag)["\']?[ \t]*:'
  r'(?:[ \t]*["\']?([\w.+-]+)["\']?[ \t]*(?:#.*)?$|((?:\r?\n[ \t]*-[ \t]*\S+)+))',
  re.MULTILINE,
)
_ITEM = re.compile(r'-[ \t]*["\']?([\w.+-]+)')


def folders(names: Iterable[str]) -> list[Path]:
  """The folders that declare tasks, groups or tags of these names, the project's own last:
  it overrides. UserError for a name that nothing declares.
  """
  found: dict[Path, None] = {}
  for name in names:
    if name in _declared(OURS):
      continue
    places = _of_harness().get(name)
    if not places:
      near = difflib.get_close_matches(name, [*_of_harness(), *_declared(OURS)], 1, 0.5)
      meant = f': did you mean {near[0]!r}?' if near else ''
      raise UserError(f'there is no task {name!r}{meant}')
    found |= dict.fromkeys(places)
  return [*found, OURS]


@functools.cache
def _of_harness() -> dict[str, list[Path]]:
  """{name: the folders directly under the harness's tasks that declare it}."""
  import lm_eval.tasks

  found: dict[str, list[Path]] = {}
  for folder in sorted(Path(lm_eval.tasks.__file__).parent.iterdir()):
    if folder.is_dir():
      for name in _declared(folder):
        found.setdefault(name, []).append(folder)
  return found


@functools.cache
def _declared(folder: Path) -> frozenset[str]:
  names = set()
  for where, _, files in os.walk(folder):
    for file in files:
      if file.endswith('.yaml'):
        text = Path(where, file).read_text(encoding='utf-8', errors='replace')
        for kind, one, several in _DECLARED.findall(text):
          # A list after `task` has the members of a group, and declares none of them.
          names |= {one} if one else set(_ITEM.findall(several)) if kind == 'tag' else set()
  return frozenset(names)
