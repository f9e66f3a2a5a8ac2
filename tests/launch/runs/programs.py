"""Starts the programs of launch/ as a user would, and reads what they leave."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from ml_collections import ConfigDict

from moe.config import Config, from_config_dict
from tests.launch.runs import config as tiny

ROOT = Path(__file__).parents[3]
CONFIG = '--config=tests/launch/runs/config.py'


def config(data_flags, **overrides) -> Config:
  """The tiny config with the flags of prepared data and overrides by dotted key,
  for a run in process.
  """
  made = tiny.get_config()
  flags = dict(flag.removeprefix('--config.').split('=', 1) for flag in data_flags)
  made.update_from_flattened_dict(
    flags | {'data.holdout': float(flags['data.holdout'])} | overrides
  )
  return from_config_dict(ConfigDict(made))


def command(program: str, *arguments: str) -> list[str]:
  return [sys.executable, '-m', f'launch.{program}', *arguments]


def run(program: str, *arguments: str, environment=None) -> subprocess.CompletedProcess:
  """Runs to the end and returns code, stdout and stderr."""
  environment = os.environ | (environment or {})
  return subprocess.run(
    command(program, *arguments),
    cwd=ROOT,
    env=environment,
    capture_output=True,
    text=True,
    timeout=300,
  )


def check(program: str, *arguments: str, environment=None) -> str:
  """stdout of a run that must succeed."""
  done = run(program, *arguments, environment=environment)
  assert done.returncode == 0, done.stdout + done.stderr
  return done.stdout


def error_line(program: str, *arguments: str) -> str:
  """The one line that a run on bad input leaves on stderr."""
  done = run(program, *arguments)
  assert done.returncode != 0, done.stdout
  assert 'Traceback' not in done.stdout + done.stderr, done.stderr
  (line,) = done.stderr.splitlines()
  assert line.startswith('error: ')
  return line


def lines(workdir: Path) -> list[dict]:
  """The complete lines of metrics.jsonl."""
  path = workdir / 'metrics.jsonl'
  text = path.read_text() if path.exists() else ''
  return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith('\n')]


# What a logged step says of the machine, not of what it computed.
OF_THE_MACHINE = (
  *('tokens_per_second', 'model_flops_per_second', 'step_seconds', 'data_wait_seconds'),
  *('memory_in_use', 'memory_peak'),
)


def losses(workdir: Path) -> list[tuple]:
  """Everything logged that a step computed, exactly as it was written;
  OF_THE_MACHINE is left out.
  """
  return [
    tuple(sorted((k, str(v)) for k, v in line.items() if k not in OF_THE_MACHINE))
    for line in lines(workdir)
  ]


def interrupt(
  number: signal.Signals, workdir: Path, at_step: int, *arguments: str
) -> tuple[int, str]:
  """Starts training and sends a signal once `at_step` is logged. Returns (exit code, output)."""
  process = subprocess.Popen(
    command('train', *arguments),
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )
  deadline = time.monotonic() + 200
  while process.poll() is None and time.monotonic() < deadline:
    logged = lines(workdir)
    if logged and logged[-1]['step'] >= at_step:
      process.send_signal(number)
      break
    time.sleep(0.002)
  output, _ = process.communicate(timeout=200)
  return process.returncode, output
