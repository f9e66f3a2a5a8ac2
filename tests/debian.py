"""Programs that tests need, from Debian's packages."""

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path


class CannotRun(Exception):
  """This machine cannot run something; the message says what is missing."""


def install(packages: Sequence[str], programs: Sequence[str], timeout: float = 120) -> None:
  """The packages, unless their programs are there. Starts no service. CannotRun where that cannot be done."""
  if all(map(shutil.which, programs)):
    return
  if os.geteuid() != 0:
    raise CannotRun(f'{", ".join(packages)} are not installed, and installing them needs root')
  if not shutil.which('apt-get'):
    raise CannotRun(f'{", ".join(packages)} are not installed, and there is no apt-get')
  # Tests in other processes may want packages too: one at a time, however long the other takes.
  with open(Path(tempfile.gettempdir()) / 'tests-apt-get.lock', 'w') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    _install(packages, timeout)


def _install(packages, timeout):
  # RUNLEVEL=1: Debian's init scripts then start nothing after the installation.
  environment = os.environ | {'RUNLEVEL': '1', 'DEBIAN_FRONTEND': 'noninteractive'}
  options = (
    '-qq',
    '-o',
    'DPkg::Lock::Timeout=30',
    '-o',
    'Acquire::http::Timeout=15',
    '-o',
    'Acquire::Retries=1',
  )
  wanted = ('install', '--yes', '--no-install-recommends', *packages)
  for arguments in (wanted, ('update',), wanted):  # `update` only if the lists are missing or old
    try:
      done = subprocess.run(
        ['apt-get', *options, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
      )
    except subprocess.TimeoutExpired as error:
      raise CannotRun(f'apt-get {arguments[0]} took more than {error.timeout} s') from error
    if done.returncode == 0 and arguments is wanted:
      return
  raise CannotRun(
    f'apt-get {" ".join(wanted)} failed: {(done.stderr.strip().splitlines() or ["no message"])[-1]}'
  )
