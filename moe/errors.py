"""The one exception type that reaches a user as a single line instead of a traceback."""


class UserError(ValueError):
  """Bad input: the message is one line that names the key, file or value at fault and what would be right."""
