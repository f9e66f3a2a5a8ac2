"""Which errors end a run for good, and which have it started again."""

import errno

import pytest

from moe.errors import TryAgain, UserError, is_transient, of_system

CASES = [
  (OSError(errno.EIO, 'x'), True),
  (OSError(errno.ESTALE, 'Stale file handle', '/share/run'), True),
  (TimeoutError('x'), True),
  (ConnectionResetError(), True),
  # tensorstore's messages.
  (ValueError('UNKNOWN: Error writing "params/d/1": Input/output error [OS error 5: EIO]'), True),
  (
    ValueError(
      'FAILED_PRECONDITION: Error reading "d/1": Stale file handle [OS error 116: ESTALE]'
    ),
    True,
  ),
  (OSError(errno.ENOSPC, 'x'), False),
  (PermissionError(errno.EACCES, 'x'), False),
  (FileNotFoundError(errno.ENOENT, 'x'), False),
  (ValueError('x'), False),
]


@pytest.mark.parametrize('error, transient', CASES)
def test_what_may_go_away_by_itself(error, transient):
  assert is_transient(error) == transient
  outer = RuntimeError('while saving')
  outer.__cause__ = error
  assert is_transient(outer) == transient
  assert type(of_system(error, 'x')) is (TryAgain if transient else UserError)


def test_the_outermost_system_error_decides():
  full = OSError(errno.ENOSPC, 'x')
  full.__context__ = TimeoutError('before')
  assert not is_transient(full)


def test_numbers():
  assert not is_transient(OSError(errno.EIO, 'x'), {errno.ESTALE})
  assert is_transient(OSError(errno.ESTALE, 'x'), {errno.ESTALE})
