"""The exceptions that reach a user as one line instead of a traceback,
and the exit codes they end a program with.
"""

import errno
import os
from collections.abc import Collection, Iterator

# OSErrors, but no fault of a file: another process or machine has ended or cannot be reached.
PEER_LOST = (TimeoutError, ConnectionError)
OF_A_SHARED_FOLDER = frozenset({errno.EIO, errno.ESTALE, errno.EREMOTEIO})


class UserError(ValueError):
  """Bad input: the message is one line that names the key,
  file or value at fault and what would be right.
  """

  # Supervisors (launch/supervise.sh, launch/cluster) do not restart a run that ends with this code:
  # it would fail again.
  exit_code = 2


class TryAgain(UserError):
  """An error that may go away by itself, such as another process that is not there yet,
  or a file system that hangs.
  """

  exit_code = 75  # EX_TEMPFAIL of sysexits.h


def is_transient(
  error: BaseException | None, numbers: Collection[int] = OF_A_SHARED_FOLDER
) -> bool:
  """Whether a fresh start may get past an error: another process has ended,
  or the network or a shared folder has failed.

  `numbers`: the errnos that count as a failed shared folder. In the chain of causes, the first
  exception that is recognised or has an errno decides.
  """
  for cause in chain(error):
    if isinstance(cause, PEER_LOST) or names(cause, numbers):
      return True
    if isinstance(cause, OSError) and cause.errno:
      return cause.errno in numbers
  return False


def chain(error: BaseException | None) -> Iterator[BaseException]:
  """Yields the exception and those it was raised from or while handling, outermost first."""
  while error:
    yield error
    error = error.__cause__ or error.__context__


def names(error: BaseException, numbers: Collection[int]) -> bool:
  """Whether an error's message has the system's words for one of these errnos:
  some libraries keep only the words.
  """
  return any(os.strerror(number) in str(error) for number in numbers)


def of_system(error: Exception, message: str) -> UserError:
  """A UserError with this message: TryAgain if the system's error is transient."""
  return TryAgain(message) if is_transient(error) else UserError(message)


def of_file(error: OSError, path: str | os.PathLike = '') -> UserError:
  """The UserError for a file that cannot be written, read or made. It names the error's file,
  or `path` where the error has none.
  """
  return of_system(error, f'{error.filename or path or "a file"}: {error.strerror or error}')


def one_line(error: BaseException) -> str:
  """An exception's message as one line of at most 300 characters, no TensorStore appendix."""
  text = (
    ' '.join(str(error).partition('See full TensorStore details')[0].split())
    or type(error).__name__
  )
  return text if len(text) <= 300 else text[:297] + '...'
