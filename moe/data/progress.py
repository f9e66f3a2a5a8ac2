"""Progress of a long read: a bar on a terminal, a line now and then in a log."""

import sys
import time

import tqdm

_PATIENCE = 3.0  # seconds before the bar appears: a shorter read needs none
_BETWEEN_LINES = 15.0  # seconds, in a log


class Progress:
  """Counts bytes towards `total` (None: unknown), on stderr."""

  def __init__(self, label: str, total: int | None):
    self._label, self._total, self._done = label, total, 0
    self._next_line = time.monotonic() + _BETWEEN_LINES
    self._bar = None
    if sys.stderr.isatty():
      self._bar = tqdm.tqdm(
        desc=label,
        total=total,
        unit='B',
        unit_scale=True,
        leave=False,
        delay=_PATIENCE,
        dynamic_ncols=True,
      )

  def __enter__(self):
    return self

  def __exit__(self, *unused):
    if self._bar is not None:
      self._bar.close()

  def add(self, count: int) -> None:
    if self._bar is not None:
      self._bar.update(count)
      return
    self._done += count
    if time.monotonic() >= self._next_line:
      self._next_line = time.monotonic() + _BETWEEN_LINES
      of_total = f' of {self._total / 1e6:.0f}' if self._total else ''
      print(f'{self._label}: {self._done / 1e6:.0f}{of_total} MB', file=sys.stderr, flush=True)
