"""Asks the programs of a cluster, Slurm's or Kubernetes'."""

import shlex
import subprocess
from collections.abc import Sequence

from moe.errors import UserError


def answer(command: Sequence[str], instead: str, input: str | None = None) -> str:
  """What a program prints, given `input`. UserError with its last line if it fails;
  if there is no such program, with what to do `instead`.
  """
  try:
    done = subprocess.run(command, input=input, capture_output=True, text=True, check=False)
  except FileNotFoundError:
    raise UserError(f'there is no {command[0]} here: {instead}') from None
  if done.returncode:
    # The last line is the error; those before may be a library's log.
    said = done.stderr.strip().splitlines() or [f'exit code {done.returncode}']
    raise UserError(f'{shlex.join(command)}: {said[-1]}')
  return done.stdout
