"""Runs programs of launch/ in this process, as the command line would: for tables of bad input.

A new process takes seconds to import jax. Each program still has at least one test in a process
of its own.
"""

import contextlib
import gc
import io
import json
import logging as std_logging
import os
import runpy
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest import mock

from absl import app, flags, logging

from tests.small import one_device

ROOT = Path(__file__).parents[1]

# absl defines its own flags once a process. Define them before the first program does, or they
# are removed with that program's flags.
app.define_help_flags()


def run(program: str, *arguments: str) -> subprocess.CompletedProcess:
  """The exit code and output of `python -m launch.PROGRAM`."""
  path = str(ROOT / f'launch/{program}.py')
  if program == 'train':
    arguments = ('--num_processes=1', *arguments)  # a cluster can be joined only before jax starts
  return _run([path, *arguments], lambda: runpy.run_path(path, run_name='__main__'))


def run_elsewhere(commands: Sequence[Sequence[str]]) -> list[subprocess.CompletedProcess]:
  """The result of `run(*command)` for each command, one after another in one new process.

  For commands that leave failed work in their process, which would spoil the tests that follow.
  """
  done = subprocess.run(
    [sys.executable, '-m', 'tests.in_process'],
    cwd=ROOT,
    input=json.dumps(commands),
    capture_output=True,
    text=True,
    timeout=300 * len(commands),
  )
  assert done.returncode == 0, done.stderr
  results = zip(commands, json.loads(done.stdout), strict=True)
  return [subprocess.CompletedProcess(command, *result) for command, result in results]


def run_source(source: str, *arguments: str) -> subprocess.CompletedProcess:
  """The exit code and output of `python -c SOURCE`."""
  return _run(
    ['-c', *arguments], lambda: exec(compile(source, '-c', 'exec'), {'__name__': '__main__'})
  )


def check(program: str, *arguments: str) -> str:
  """stdout of a run that must succeed."""
  done = run(program, *arguments)
  assert done.returncode == 0, done.stdout + done.stderr
  return done.stdout


def error_line(program: str, *arguments: str) -> str:
  """The one line that a run on bad input leaves on stderr."""
  done = run(program, *arguments)
  assert done.returncode == 2, done
  assert 'Traceback' not in done.stderr, done.stderr
  (line,) = done.stderr.splitlines()
  assert line.startswith('error: ')
  return line


def _run(argv, start):
  code, out, errors = 0, io.StringIO(), io.StringIO()
  with (
    mock.patch.object(sys, 'argv', argv),
    _no_flags_of_programs(),
    one_device(),
    mock.patch.dict(os.environ),
    mock.patch('os._exit', sys.exit),  # cli.run, after bad input
    _logging_to(errors),
    contextlib.redirect_stdout(out),
    contextlib.redirect_stderr(errors),
  ):
    try:
      start()
    except SystemExit as ended:
      code = ended.code or 0
  return subprocess.CompletedProcess(argv, code, out.getvalue(), errors.getvalue())


@contextlib.contextmanager
def _no_flags_of_programs() -> Iterator[None]:
  """Lets a program define its flags anew, then restores the old ones: absl has one set of flags
  a process.
  """
  known = flags.FLAGS
  ours = [
    (module, flag)
    for module, defined in known.flags_by_module_dict().items()
    if module.startswith(('launch.', 'experiments.'))
    for flag in defined
  ]
  for _, flag in ours:
    delattr(known, flag.name)
  before = set(known)
  for name in before:
    known[name].unparse()
  try:
    yield
  finally:
    # Keep the flags of libraries that the program was the first to import.
    of_program = {flag.name for flag in known.flags_by_module_dict().get(sys.argv[0], ())}
    for name in set(known) - before:
      if name in of_program or name.startswith('config.'):
        delattr(known, name)
    known.unparse_flags()
    for module, flag in ours:
      known[flag.name] = flag
      known.register_flag_by_module(module, flag)


@contextlib.contextmanager
def _logging_to(stream: io.StringIO) -> Iterator[None]:
  """Sends absl's log lines to `stream`, then restores the root logger's handlers and level,
  which absl takes over.
  """
  loggers = std_logging.getLogger(), logging.get_absl_logger()
  before = [(list(logger.handlers), logger.level) for logger in loggers]
  handler = logging.get_absl_handler().python_handler
  try:
    logging.use_absl_handler()
    with mock.patch.object(handler, 'stream', stream):
      yield
  finally:
    for logger, (handlers, level) in zip(loggers, before, strict=True):
      logger.handlers[:] = handlers
      logger.setLevel(level)


def _main():
  results = []
  for command in json.load(sys.stdin):
    done = run(*command)
    results.append((done.returncode, done.stdout, done.stderr))
    gc.collect()  # work that failed complains now, not during the next command
  json.dump(results, sys.stdout)


if __name__ == '__main__':
  _main()
