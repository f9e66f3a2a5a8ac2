"""On which machine and with which code a run was made."""

import functools
import importlib.metadata
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

from experiments.sweeps.places import ROOT
from moe.storage import provenance

_ROOT = ROOT


def commit() -> str:
  """The repository's commit, with '-dirty' if files that a run could depend on differ from it;
  'unknown' outside a repository.
  """
  revision, dirty = provenance.commit(_ROOT)
  return 'unknown' if revision is None else revision + '-dirty' * dirty


def is_certain(commit: str) -> bool:
  """Whether `commit` tells the code exactly: it is neither dirty nor unknown,
  nor anything that git would take for an option.
  """
  return re.fullmatch(r'[0-9a-f]{7,64}', commit) is not None


def is_of(found: Iterable[str], now: str) -> bool:
  """Whether results of the commits `found` are of the code at `now`: each is that commit, or
  differs from it in nothing that a run could depend on. False if that cannot be told.
  """
  found = set(found)
  return bool(found) and is_certain(now) and all(map(_same_code, found, [now] * len(found)))


@functools.cache
def _same_code(one: str, other: str) -> bool:
  if one == other:
    return True
  if not is_certain(one):
    return False
  try:
    _git('diff', '--quiet', one, other, '--', '.', *provenance.NO_CODE)
  except (OSError, subprocess.CalledProcessError):  # they differ, or one is not in this clone
    return False
  return True


def _git(*arguments: str) -> str:
  return subprocess.run(
    ['git', *arguments], cwd=_ROOT, capture_output=True, text=True, check=True
  ).stdout.strip()


def note_commit(workdir: Path, commit: str) -> None:
  """Notes in a run's folder the commit that is about to train or score it,
  below those that have done so before.
  """
  workdir.mkdir(parents=True, exist_ok=True)
  if commit not in (known := commits(workdir)):
    (workdir / 'commit').write_text('\n'.join([*known, commit]) + '\n', encoding='utf-8')


def commits(workdir: Path) -> list[str]:
  """The commits that have trained and scored a run, each once:
  several if it was interrupted and went on with another.
  """
  path = workdir / 'commit'
  return path.read_text(encoding='utf-8', errors='replace').split() if path.exists() else []


def describe() -> dict[str, str]:
  """The model of the CPU, the kind of the device, the version of jax. Starts the device."""
  import jax

  device = jax.devices()[0]
  count = f'{jax.device_count()} × ' if jax.device_count() > 1 else ''
  return {
    'cpu': provenance.cpu(),
    'device': f'{count}{device.platform} ({device.device_kind})',
    'jax': jax.__version__,
  }


def describe_without_device() -> dict[str, str]:
  """As `describe`, for a run of which nothing is computed here: starts no device."""
  return {'cpu': provenance.cpu(), 'device': 'unknown', 'jax': importlib.metadata.version('jax')}
