"""One program at a time in a run's folder, also where several machines share it.

DIR/.lock names its holder: host, process, since when. A holder on this machine is dead if its
process is gone, or if its number belongs to a process that started at another time. A holder
elsewhere (another host, or another container) touches the file every BEAT seconds to show that it
lives; after SILENCE seconds without such a sign it counts as dead. The lock of a dead holder is
taken over.
"""

import contextlib
import datetime
import errno
import json
import os
import secrets
import socket
import threading
import time
from pathlib import Path

from moe import files
from moe.errors import TryAgain

BEAT = 10.0  # seconds
SILENCE = 60.0
_HELD: set[str] = set()  # tokens of this process
_WITHOUT_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF)


class Hold:
  """A lock that is held. `taken_over`: '' or a sentence on the dead holder it was taken from."""

  def __init__(self, path: Path, holder: dict, taken_over: str):
    self.taken_over = taken_over
    self._path, self._holder = path, holder
    self._ended = threading.Event()
    self._heart = threading.Thread(target=self._beat, name='lock of the workdir', daemon=True)
    self._heart.start()

  def check(self) -> None:
    """Raises TryAgain if another program has taken over the lock,
    as happens after this machine has slept too long.
    """
    other = _read(self._path)
    if other and other.get('token') != self._holder['token']:
      raise TryAgain(
        f'{self._path.parent} was taken over by {_named(other)}, '
        f'as this process gave no sign for {SILENCE:.0f} s'
      )

  def close(self) -> None:
    """Releases the lock."""
    self._ended.set()
    self._heart.join()
    _HELD.discard(self._holder['token'])
    with contextlib.suppress(OSError), _guarded(self._path):
      if (_read(self._path) or {}).get('token') == self._holder['token']:
        os.truncate(self._path, 0)

  def _beat(self):
    while not self._ended.wait(BEAT):
      # If the folder cannot be written now, whoever writes something that matters reports it.
      with contextlib.suppress(OSError):
        os.utime(self._path)


def acquire(folder: Path) -> Hold:
  """Takes the lock of an existing folder. TryAgain, with host, process and since when,
  if a living program has it.
  """
  path = folder / '.lock'
  holder = _this_process()
  taken_over = _take(path, holder)
  _HELD.add(holder['token'])
  return Hold(path, holder, taken_over)


def _take(path, holder):
  """Writes `holder` into the lock; returns '' or a sentence on the dead holder it was taken from.
  TryAgain if the present holder lives.
  """
  while True:
    with _guarded(path) as guarded:
      other = _read(path)
      living = _lives(other) if other else False
      if living is False:
        path.write_text(json.dumps(holder), encoding='utf-8')
        break
    if living or _gives_a_sign(path):
      raise TryAgain(
        f'{path.parent} is in use by {_named(other)}: let it end or stop it; '
        'the same command then goes on'
      )
    # The holder was silent, so it is dead, unless another start has taken its place meanwhile.
    with _guarded(path) as guarded:
      if _read(path) == other:
        path.write_text(json.dumps(holder), encoding='utf-8')
        break
  if not guarded:
    # Another start may have come to the same conclusion; the last to write has the lock.
    time.sleep(1)
    if (now := _read(path)) != holder:
      raise TryAgain(f'{path.parent} is in use by {_named(now)}: another start was faster')
  return (
    f'the lock of {path.parent} is taken over from {_named(other)}, which has ended'
    if other
    else ''
  )


@contextlib.contextmanager
def _guarded(path):
  """Inside, no other program that uses this function reads or writes the lock's file.
  Yields False, and guards nothing, where the file system has no locks.
  """
  with contextlib.ExitStack() as stack:
    try:
      stack.enter_context(files.locked(path))
    except OSError as error:
      if error.errno not in _WITHOUT_LOCKS:
        raise
      yield False
      return
    yield True


def _read(path):
  """The holder; None if nobody holds the lock. Any other content, such as half a holder,
  counts as a holder without a name, of which only signs can tell whether it lives.
  """
  try:
    content = path.read_bytes()
  except FileNotFoundError:
    return None
  if not content:
    return None
  try:
    holder = json.loads(content)
  except ValueError:
    holder = None
  return holder if isinstance(holder, dict) else {'token': None}


def _lives(holder):
  """Whether a holder's process lives; None where only its signs can tell."""
  own = _this_process()
  if any(holder.get(name) != own[name] for name in ('host', 'boot', 'namespace')):
    return None
  number = holder.get('process')
  if not isinstance(number, int):
    return None
  try:
    os.kill(number, 0)
  except ProcessLookupError:
    return False
  except PermissionError:
    pass
  if _started(number) != holder.get('started'):
    return False
  return number != os.getpid() or holder.get('token') in _HELD


def _gives_a_sign(path):
  """Waits, and returns True once the lock is touched, or False once it has been silent for SILENCE
  seconds. The file system's clock says for how long it was silent before.
  """
  seen = _touched(path)
  clock = path.with_name(f'.lock.{secrets.token_hex(4)}')
  clock.touch()
  silent = clock.stat().st_mtime - (seen or 0)
  clock.unlink()
  deadline = time.monotonic() + SILENCE - max(silent, 0)
  while time.monotonic() < deadline:
    if _touched(path) != seen:
      return True
    time.sleep(min(1.0, BEAT / 4))
  return False


def _touched(path):
  try:
    return path.stat().st_mtime
  except FileNotFoundError:
    return None


def _this_process():
  return {
    'host': socket.gethostname(),
    'process': os.getpid(),
    'since': datetime.datetime.now().astimezone().isoformat(' ', 'seconds'),
    'started': _started(os.getpid()),
    'boot': _first_line('/proc/sys/kernel/random/boot_id'),
    'namespace': _link('/proc/self/ns/pid'),
    'token': secrets.token_hex(16),
  }


def _started(number):
  """When a process started, in ticks since boot;
  None if it has ended or /proc does not tell.
  """
  # The name, in brackets, may hold spaces; a zombie has ended.
  state, *rest = (_first_line(f'/proc/{number}/stat') or ')').rpartition(')')[2].split() or ['Z']
  return None if state in 'ZX' else rest[18]


def _first_line(path):
  try:
    return Path(path).read_text(encoding='utf-8', errors='replace').strip()
  except OSError:
    return None


def _link(path):
  try:
    return os.readlink(path)
  except OSError:
    return None


def _named(holder):
  if not holder or 'process' not in holder:
    return 'an unknown process'
  return f'process {holder["process"]} on {holder.get("host")}, since {holder.get("since")}'
