"""The Debian packages that some tests need. Tests look for them; this program installs them.

python -m tests.debian    # make setup-test: installs what is missing, as root on Debian
"""

import os
import shutil
import subprocess
from typing import NamedTuple


class CannotRun(Exception):
  """This machine cannot run something; the message says what is missing."""


class Needed(NamedTuple):
  """Packages and the programs they bring. One program of each tuple must be on PATH."""

  name: str
  packages: tuple[str, ...]
  programs: tuple[tuple[str, ...], ...]


SLURM = Needed(
  'Slurm',
  packages=('munge', 'slurmctld', 'slurmd', 'slurm-client'),
  programs=(('munged',), ('slurmctld',), ('slurmd',), ('sbatch',)),
)
CHROMIUM = Needed(
  'Chromium',
  packages=('chromium',),
  programs=(('chromium', 'chromium-browser', 'google-chrome'),),
)
_LONGEST = 600  # seconds that apt-get may take


def find(needed: Needed) -> list[str]:
  """The paths of its programs. Raises CannotRun, which names a missing one and how to get it."""
  paths = []
  for names in needed.programs:
    found = next(filter(None, map(shutil.which, names)), None)
    if not found:
      raise CannotRun(
        f'no {names[0]} on PATH: make setup-test installs {needed.name} (Debian, root)'
      )
    paths.append(found)
  return paths


def missing(needed: Needed) -> bool:
  try:
    find(needed)
  except CannotRun:
    return True
  return False


def install(packages: list[str]) -> None:
  """Installs packages and starts no service. Raises CannotRun if they cannot be installed."""
  if os.geteuid() != 0:
    raise CannotRun('installing needs root')
  if not shutil.which('apt-get'):
    raise CannotRun('there is no apt-get')
  # With RUNLEVEL=1, Debian's init scripts start nothing after the installation.
  environment = os.environ | {'RUNLEVEL': '1', 'DEBIAN_FRONTEND': 'noninteractive'}
  limits = ('DPkg::Lock::Timeout=30', 'Acquire::http::Timeout=15', 'Acquire::Retries=1')
  command = ['apt-get', '-qq', *(f'-o{limit}' for limit in limits)]
  wanted = ['install', '--yes', '--no-install-recommends', *packages]
  # A first failure may be due to missing or old package lists: update them and try again.
  for arguments in (wanted, ['update'], wanted):
    try:
      done = subprocess.run(
        [*command, *arguments], env=environment, capture_output=True, text=True, timeout=_LONGEST
      )
    except subprocess.TimeoutExpired as error:
      raise CannotRun(f'apt-get {arguments[0]} took more than {error.timeout} s') from error
    if done.returncode == 0 and arguments is wanted:
      return
  last = (done.stderr.strip().splitlines() or ['no message'])[-1]
  raise CannotRun(f'apt-get {" ".join(wanted)} failed: {last}')


def main() -> None:
  for needed in filter(missing, (SLURM, CHROMIUM)):
    print(f'{needed.name}, for the tests: installing {", ".join(needed.packages)}', flush=True)
    try:
      install(list(needed.packages))
      find(needed)
    except CannotRun as error:
      print(f'{needed.name}: {error}; tests of it will be skipped', flush=True)


if __name__ == '__main__':
  main()
