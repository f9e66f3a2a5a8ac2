"""The exceptions that reach a user as one line instead of a traceback, and the exit codes they end a program with."""


class UserError(ValueError):
  """Bad input: the message is one line that names the key, file or value at fault and what would be right."""

  exit_code = 2  # what starts runs again (launch/supervise.sh, launch/cluster) leaves these alone: it helps nobody


class TryAgain(UserError):
  """What may go away by itself, such as another process that is not there yet, or a file system that hangs."""

  exit_code = 75  # EX_TEMPFAIL of sysexits.h
