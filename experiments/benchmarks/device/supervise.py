"""Asks a worker for one case after another and keeps the time.

Only the worker uses the device. It is killed if a compiler or a kernel hangs, and a new one starts
after that or after a crash.
"""

import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from experiments.benchmarks.device import worker
from experiments.benchmarks.device.records import NOT_MEASURED, record
from moe.errors import UserError

# For the whole suite: 8 minutes, less the time to start and end.
_SECONDS = 465.0
# For one case: after _MOST it counts as hanging, and none begins with less than _LEAST left.
_MOST, _LEAST = 90.0, 5.0


def suite(rounds: int) -> list[dict]:
  """Records of all cases: measured, or left out for lack of time."""
  return list(records(worker.serve, rounds, _SECONDS))


def records(serve: Callable, rounds: int, seconds: float) -> Iterator[dict]:
  """Yields records part by part. A part begins no case after its time is over; such cases are tried
  again at the end if there is time. `serve`: as `worker.serve`.

  UserError if no worker starts.
  """
  ends, crew, put_off = time.monotonic() + seconds, _Crew(serve, rounds), []
  try:
    where, parts = crew.start(seconds)
    for part, allowed, cases in parts:
      part_ends = min(ends, time.monotonic() + allowed)
      for case in cases:
        if part_ends - time.monotonic() < _LEAST:
          reason = f'no time: {part} has {allowed:.0f} s, the suite {seconds:.0f}'
          put_off.append((case, reason))
          continue
        yield from _with(where, crew.records(case, ends))
    for case, reason in put_off:
      has_time = ends - time.monotonic() >= _LEAST
      made = crew.records(case, ends) if has_time else [record(case, left_out=reason)]
      yield from _with(where, made)
  except _Lost as lost:
    raise UserError(f'--suite=device: the device cannot be used: {lost}') from lost
  finally:
    crew.end()


def _with(where, made):
  for each in made:
    said = next((f'{key}: {each[key]}' for key in NOT_MEASURED if key in each), 'measured')
    print(f'{each["name"]}: {said}', file=sys.stderr, flush=True)
    yield each | where


class _Lost(Exception):
  """The worker said nothing in time, or is gone."""


class _Crew:
  """One worker at a time."""

  def __init__(self, serve: Callable, rounds: int):
    self._serve, self._rounds = serve, rounds
    self._folder = tempfile.TemporaryDirectory()
    self._process = self._connection = self._log = None

  def start(self, seconds: float) -> tuple:
    """Starts a worker and returns its offer."""
    context = multiprocessing.get_context('spawn')
    self._connection, theirs = context.Pipe()
    self._log = Path(self._folder.name) / 'log'
    self._log.touch()
    given = theirs, self._rounds, str(self._log)
    self._process = context.Process(target=self._serve, args=given, daemon=True)
    self._process.start()
    theirs.close()
    return self._receive(seconds)

  def records(self, case: str, ends: float) -> list[dict]:
    """The records of a case, or one that says what became of the worker."""
    try:
      if self._process is None:
        self.start(min(_MOST, ends - time.monotonic()))
      seconds = min(_MOST, ends - time.monotonic())
      self._connection.send(case)
      made, is_well = self._receive(seconds)
    except (_Lost, OSError) as lost:
      self.end()
      cut = time.monotonic() >= ends
      why = {'left_out': 'no time to end it'} if cut else {'failed': str(lost)}
      return [record(case, **why)]
    if not is_well:
      self.end()
    return made

  def end(self) -> None:
    if self._process is None:
      return
    self._process.kill()
    self._process.join()
    self._connection.close()
    self._process = None

  def _receive(self, seconds):
    try:
      if not self._connection.poll(max(0.0, seconds)):
        raise _Lost(f'ended after {seconds:.0f} s')
      return self._connection.recv()
    except (EOFError, ConnectionError) as error:
      self._process.join()
      said = self._log.read_text(errors='replace').split('\n')
      last = next((line.strip() for line in reversed(said) if line.strip()), 'nothing said')
      code = self._process.exitcode
      raise _Lost(f'the process crashed, exit code {code}: {last[:300]}') from error
