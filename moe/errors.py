"""The exceptions that reach a user as one line instead of a traceback,
and the exit codes they end a program with.
"""

import errno
import os
from collections.abc import Collection, Iterator

# OSErrors, but of waiting for another process or machine, which has ended or cannot be reached.
PEER_LOST = (TimeoutError, ConnectionError)
OF_A_SHARED_FOLDER = frozenset({errno.EIO, errno.ESTALE, errno.EREMOTEIO})


class UserError(ValueError):
  """Bad input: the message is one line that names the key,
  file or value at fault and what would be right.
  """

  # What starts runs again (launch/supervise.sh, launch/cluster) leaves these alone:
  # it helps nobody.
  exit_code = 2


class TryAgain(UserError):
  """What may go away by itself, such as another process that is not there yet,
  or a file system that hangs.
  """

  exit_code = 75  # EX_TEMPFAIL of sysexits.h


def is_transient(
  error: BaseException | None, numbers: Collection[int] = OF_A_SHARED_FOLDER
) -> bool:
  """Whether a fresh start may get past an error: another process's end,
  or a fault of the network or of a shared folder.

  `numbers`: which errnos count as the latter. The first of the chain of causes that has
  an errno or a name decides.
  """
  for cause in chain(error):
    if isinstance(cause, PEER_LOST) or names(cause, numbers):
      return True
    if isinstance(cause, OSError) and cause.errno:
      return cause.errno in numbers
  return False


def chain(error: BaseException | None) -> Iterator[BaseException]:
  """The exception and those it was raised from or while handling, outermost first."""
  while error:
    yield error
    error = error.__cause__ or error.__context__


def names(error: BaseException, numbers: Collection[int]) -> bool:
  """Whether an error's words are the system's for one of these errnos:
  some libraries keep nothing else of it.
  """
  return any(os.strerror(number) in str(error) for number in numbers)


def of_system(error: Exception, message: str) -> UserError:
  """An error with this message: TryAgain if what the system said is transient."""
  return TryAgain(message) if is_transient(error) else UserError(message)


def of_file(error: OSError, path: str | os.PathLike = '') -> UserError:
  """A file that cannot be written, read or made, which the error names,
  or `path` where it names none.
  """
  return of_system(error, f'{error.filename or path or "a file"}: {error.strerror or error}')


def one_line(error: BaseException) -> str:
  """An exception's first words, without line breaks and TensorStore's appendix."""
  text = (
    ' '.join(str(error).partition('See full TensorStore details')[0].split())
    or type(error).__name__
  )
  return text if len(text) <= 300 else text[:297] + '...'
