"""The pattern of a source (a file, a folder, a glob with braces and `~`) → its files:
each file once, and none that a run wrote.
"""

import functools
import glob
import itertools
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from moe.data.tokenizers.base import FILES, MODEL_FILES


class Found(NamedTuple):
  files: tuple[Path, ...]  # sorted
  links: tuple[Path, ...]  # left out: links to files and folders that are found already
  outputs: tuple[Path, ...]  # left out: files that runs wrote


def find(pattern: str) -> Found:
  """The files that `pattern` names: a file, a folder (all files below it that are not hidden),
  or a glob with {a,b}, {00..09} and ~.
  """
  paths, links, outputs = set(), set(), []
  for written in expand_braces(pattern) if not os.path.lexists(pattern) else [pattern]:
    written = os.path.expanduser(written)
    if os.path.lexists(written):  # even if its name has characters of a glob
      matches = [Path(written)]
    else:
      matches = list(_glob(written, links))
    for path in matches:
      if path.is_file():
        paths.add(path)
      elif path.is_dir() and str(path) == written:
        paths.update(_files_below(path, links))
  files, seen = [], {}
  # A link comes after the file that it leads to, so that the link is left out.
  for path in sorted(
    paths, key=lambda path: (os.path.realpath(path) != os.path.abspath(path), path)
  ):
    if _is_output(path):
      outputs.append(path)
    elif seen.setdefault(identity(path), path) is path:
      files.append(path)
    else:
      links.add(path)
  return Found(tuple(sorted(files)), tuple(sorted(links)), tuple(sorted(outputs)))


def identity(path: Path) -> object:
  """A key that all paths of one file share, through hard and symbolic links."""
  status = os.stat(path)
  if status.st_nlink > 1:
    return status.st_dev, status.st_ino
  return os.path.realpath(path)


def expand_braces(pattern: str) -> list[str]:
  """Expands braces as a shell does: {a,b} and {08..11}, nested and side by side; others stay."""
  depth, begin, commas = 0, -1, []
  for at, character in enumerate(pattern):
    if character == '{':
      if depth == 0:
        begin, commas = at, []
      depth += 1
    elif character == '}' and depth:
      depth -= 1
      if depth == 0 and (options := _options(pattern, begin, at, commas)):
        ends = expand_braces(pattern[at + 1 :])
        starts = [pattern[:begin] + made for option in options for made in expand_braces(option)]
        return [start + end for start in starts for end in ends]
    elif character == ',' and depth == 1:
      commas.append(at)
  return [pattern]


def _options(pattern, begin, end, commas):
  if commas:
    edges = [begin, *commas, end]
    return [pattern[a + 1 : b] for a, b in itertools.pairwise(edges)]
  if series := re.fullmatch(r'(\d+)\.\.(\d+)', pattern[begin + 1 : end]):
    first, last = series.groups()
    width = max(len(first), len(last)) if first.startswith('0') or last.startswith('0') else 0
    step = 1 if int(first) <= int(last) else -1
    return [f'{number:0{width}d}' for number in range(int(first), int(last) + step, step)]
  return []


def _glob(pattern, links) -> Iterator[Path]:
  """Like glob.glob(recursive=True), but ** enters each folder once: links can make circles."""
  parts = pattern.split('/')
  if '**' not in parts:
    yield from map(Path, glob.glob(pattern))
    return
  place = parts.index('**')
  before, rest = '/'.join(parts[:place]), '/'.join(parts[place + 1 :]) or '*'
  for root in [before + '/'] if place == 1 and not before else glob.glob(before or '.'):
    for folder in _folders(Path(root), links):
      yield from _glob(os.path.join(glob.escape(str(folder)), rest), links)


def _folders(root, links) -> Iterator[Path]:
  """`root` and the folders below it that are not hidden, each once; links come last."""
  seen, waiting = set(), [(root, False)]
  linked = []
  while waiting or linked:
    folder, is_link = waiting.pop() if waiting else linked.pop(0)
    real = os.path.realpath(folder)
    if real in seen or not os.path.isdir(folder):
      if is_link and os.path.isdir(folder):
        links.add(folder)
      continue
    seen.add(real)
    yield folder
    try:
      entries = sorted(os.scandir(folder), key=lambda entry: entry.name, reverse=True)
    except PermissionError:  # as glob does
      continue
    for entry in entries:
      if entry.is_dir() and not entry.name.startswith('.'):
        (linked if entry.is_symlink() else waiting).append(
          (folder / entry.name, entry.is_symlink())
        )


def _files_below(root, links):
  for folder in _folders(root, links):
    yield from (
      path for path in folder.iterdir() if path.is_file() and not path.name.startswith('.')
    )


# What training writes into a run's folder.
_OF_A_RUN = {
  'config.json',
  'metrics.jsonl',
  *FILES,
  'provenance.json',
  'held_out_losses.json',
  'tensorboard',
  'wandb',
  'profile',
  'checkpoints',
  'unreadable',
  'data',
}


def _is_output(path):
  """Whether a run wrote the file: it is prepared data, or lies in a run's folder under a name
  that training writes there.
  """
  path = Path(os.path.abspath(path))
  if _is_prepared_data(path.parent):
    return True
  inner = path
  for folder in path.parents:
    if inner.name in _OF_A_RUN and _is_run(folder):
      return inner.name != 'data' or _is_prepared_data(inner)
    inner = folder
  return False


@functools.lru_cache(maxsize=4096)
def _is_prepared_data(folder):
  return any((folder / name).is_file() for name in MODEL_FILES) and (
    {'format', 'splits', 'settings'} <= _keys(folder / 'metadata.json')
  )


@functools.lru_cache(maxsize=4096)
def _is_run(folder):
  return {'model', 'moe', 'data', 'train'} <= _keys(folder / 'config.json')


def _keys(path):
  try:
    value = json.loads(path.read_bytes())
  except (OSError, ValueError, RecursionError):
    return frozenset()
  return value.keys() if isinstance(value, dict) else frozenset()


def forget() -> None:
  """Forgets what is cached about folders, since this process may have written into some."""
  _is_prepared_data.cache_clear()
  _is_run.cache_clear()
