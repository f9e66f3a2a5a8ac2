"""The programs that a sweep starts: one log each, signals passed on,
and a lock that outlives a killed sweep.
"""

import contextlib
import fcntl
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from experiments.sweeps.places import ROOT
from experiments.sweeps.shares import WHOLE, Share
from moe.errors import UserError, of_file

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def sole_sweep(runs_folder: Path) -> Iterator[IO]:
  """Holds the lock of a folder of runs. UserError if another process does.

  The lock belongs to the open file, which every child inherits. If the sweep is killed, a run that
  it has started keeps the next sweep out until it ends, since two processes must not train in one
  folder. Nothing is ever left to remove.
  """
  try:
    runs_folder.mkdir(parents=True, exist_ok=True)
    (runs_folder / '.lock').touch()
  except OSError as error:
    raise of_file(error, runs_folder) from error
  with open(runs_folder / '.lock', 'a+') as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      lock.seek(0)
      holders = lock.read().split()
      alive = [number for number in holders if number.isdigit() and _alive(int(number))]
      raise UserError(
        f'another sweep, or a run left by a killed one, is using {runs_folder} (process '
        f'{", ".join(alive) or "unknown"}): let it end, stop it with `kill`, '
        'or use another --workdir'
      ) from None
    yield lock


class Children:
  """Starts programs of this project. Within its `with` signals go to them;
  whatever still runs at the end is killed.

  The first Ctrl-C, SIGTERM or SIGHUP lets them save and end (SIGTERM to each);
  the second kills them.
  """

  def __init__(self, lock: IO):
    self._lock, self._living = lock, []
    self.stopped_by: signal.Signals | None = None

  def __enter__(self):
    self._before = {number: signal.signal(number, self._on_signal) for number in _SIGNALS}
    self._note()
    return self

  def __exit__(self, *unused):
    for process in self._living:
      if process.poll() is None:
        process.kill()
        process.wait()
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def start(self, arguments: Sequence[str], log: Path, share: Share = WHOLE) -> subprocess.Popen:
    """Starts `python ARGUMENTS` on a share of the machine and appends its output to `log`. It has a
    session of its own, so that Ctrl-C reaches only us.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    # -P, with this package first on the path, so that nothing of its name in the current folder is
    # taken. That folder comes last, if our path has it: a user's config may import from it.
    at_hand = [os.getcwd()] if {'', os.getcwd()} & {*sys.path} else []
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH', ''), *at_hand]))
    with log.open('a', encoding='utf-8') as output, share.to_children() as environment:
      output.write(f'$ python {shlex.join(arguments)}\n')
      output.flush()
      process = subprocess.Popen(
        [sys.executable, '-P', *arguments],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=environment | {'PYTHONPATH': path},
        start_new_session=True,
        pass_fds=(self._lock.fileno(),),
      )
    self._living = [other for other in self._living if other.poll() is None] + [process]
    self._note()
    if self.stopped_by:  # while it was being started
      process.terminate()
    return process

  def _note(self):
    """Writes who holds the lock, for the message of a sweep that is refused."""
    self._lock.seek(0)
    self._lock.truncate()
    self._lock.write(' '.join(map(str, [os.getpid(), *(process.pid for process in self._living)])))
    self._lock.flush()

  def _on_signal(self, number, frame):
    del frame
    for process in self._living:
      if process.poll() is None:
        process.kill() if self.stopped_by else process.terminate()
    self.stopped_by = self.stopped_by or signal.Signals(number)


def last_words(log: Path) -> str:
  """The last line of a log that is not empty; the error itself if a
  program of this project has told one.
  """
  lines = log.read_text(encoding='utf-8', errors='replace').splitlines() if log.exists() else []
  lines = [line.strip() for line in lines if line.strip()]
  errors = [line for line in lines[-5:] if line.startswith('error: ')]
  return (errors or lines or ['no output'])[-1]


def _alive(process):
  try:
    os.kill(process, 0)
  except ProcessLookupError:
    return False
  except PermissionError:
    pass
  return True
