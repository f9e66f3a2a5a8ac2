"""DIR/provenance.json: the code, versions, command and machine
that made each part of a run.
"""

import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from etils import epath

from moe import files

FILE = 'provenance.json'
# The key under which a part describes the checkpoint that the run's weights started from.
SOURCE = 'init_from'
_ROOT = Path(__file__).parent.parent.parent
# Files that no run depends on. Sweeps write results: a new line there is no change of the code.
# What a study asks of a run is in the run's config.
NO_CODE = (
  *(':!experiments/results', ':!experiments/studies', ':!experiments/reports'),
  *(':!experiments/notebooks', ':!tests', ':!docs', ':!*.md'),
)
_PACKAGES = (
  *('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy', 'grain'),
  *('sentencepiece', 'array-record', 'ml-collections'),
)
_VECTOR_UNITS = ('avx2', 'avx512f', 'avx512_bf16', 'amx_bf16', 'asimd', 'sve', 'bf16')
# A difference in one of these may change results.
_COMPARED = ('commit', 'dirty', 'versions', 'machine')


def describe() -> dict:
  """The provenance of this process, now. Starts the device."""
  import jax

  device = jax.devices()[0]
  revision, dirty = commit()
  return {
    'commit': revision,
    'dirty': dirty,
    'versions': {'python': platform.python_version(), **_versions()},
    'command': shlex.join([os.path.basename(sys.executable), *sys.orig_argv[1:]]),
    'machine': {
      'cpu': cpu(),
      'devices': f'{jax.device_count()} × {device.platform} ({device.device_kind})',
      'processes': jax.process_count(),
    },
    'host': socket.gethostname(),
  }


def note(workdir: Path, now: Mapping) -> str:
  """Adds this start to the file. Returns '' or one line: what differs from the last start
  and may change results, or that the file was damaged.
  """
  path = workdir / FILE
  parts, damage = _read(path)
  time = datetime.datetime.now().astimezone().isoformat(' ', 'seconds')
  last = parts[-1] if parts else None
  if last and all(last.get(name) == value for name, value in now.items()):
    last |= {'last_start': time, 'starts': last.get('starts', 1) + 1}
  else:
    parts.append({**now, 'first_start': time, 'last_start': time, 'starts': 1})
  files.replace(path, files.to_json(parts, indent=2) + '\n')
  return damage or (_changes(last, now) if last else '')


def source(workdir: str | os.PathLike) -> dict | None:
  """The checkpoint that a run's weights started from: {'path', 'step', 'checksum'}.

  None if the run started from no checkpoint, or its provenance.json names none.
  `workdir` may be in a bucket.
  """
  try:
    parts = json.loads((epath.Path(workdir) / FILE).read_text())
    found = parts[-1][SOURCE]
    return {name: found[name] for name in ('path', 'step', 'checksum')}
  except (OSError, ValueError, LookupError, TypeError):
    return None


def source_in_words(source: Mapping | None) -> str:
  """'', or words on the checkpoint that a run started from."""
  if not source:
    return ''
  return f'{source["path"]}, step {source["step"]} (checksum {source["checksum"]})'


def commit(root: Path = _ROOT) -> tuple[str | None, bool | None]:
  """(the commit of the repository at `root`, whether files that a run depends on differ from it);
  (None, None) outside a repository.
  """
  git = lambda *arguments: subprocess.run(
    ['git', *arguments], cwd=root, capture_output=True, text=True, check=True
  ).stdout.strip()
  try:
    if not os.path.samefile(git('rev-parse', '--show-toplevel'), root):
      return None, None  # installed inside somebody else's repository
    return git('rev-parse', 'HEAD'), bool(git('status', '--porcelain', '--', '.', *NO_CODE))
  except (OSError, subprocess.CalledProcessError):
    return None, None


def cpu() -> str:
  """This process's cores, their model and vector units:
  they decide how fast it computes and how it rounds.
  """
  try:
    lines = Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines()
  except OSError:
    return platform.processor() or platform.machine()
  first = {
    name.strip(): value.strip()
    for name, _, value in (line.partition(':') for line in reversed(lines))
  }
  features = first.get('flags', first.get('Features', '')).split()  # x86, ARM
  units = ', '.join(unit for unit in _VECTOR_UNITS if unit in features)
  cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
  return f'{cores} × {first.get("model name") or platform.machine()}' + (
    f' ({units})' if units else ''
  )


def _versions():
  versions = {}
  for name in _PACKAGES:
    try:
      versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      versions[name] = None
  return versions


def _read(path):
  """(the parts of the run so far, '' or a message that they cannot be read). Moves a damaged file
  aside.
  """
  try:
    parts = files.read_json_list(path)
  except FileNotFoundError:
    return [], ''
  except ValueError as error:
    aside = path.with_name(f'{FILE}.damaged')
    os.replace(path, aside)
    return [], f'{path} is damaged ({error}): moved to {aside}, and begun again'
  return parts, ''


def _changes(last, now):
  changed = []
  for name in _COMPARED:
    old, new = last.get(name), now[name]
    if isinstance(new, Mapping):
      old = old if isinstance(old, Mapping) else {}
      changed += [
        f'{key} {old.get(key)} then, {value} now'
        for key, value in new.items()
        if old.get(key) != value
      ]
    elif old != new:
      changed.append(f'{name} {old} then, {new} now')
  return f'this run was started under other conditions: {"; ".join(changed)}' if changed else ''
