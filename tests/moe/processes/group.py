"""Starts one run as several processes on this machine, as several machines would."""

import contextlib
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

from tests.launch.runs import programs

PATIENCE = 280  # seconds, for what takes half a minute on an idle machine
HEARTBEAT = 15  # seconds


class Group:
  """`count` processes of launch.train, each under launch/supervise.sh if `supervised`.
  Use it in a `with`.
  """

  def __init__(self, count: int, workdir: Path, *flags: str, supervised: bool = False):
    self.workdir, self._supervised = workdir, supervised
    self._outputs = [workdir.with_name(f'{workdir.name}.{number}.log') for number in range(count)]
    self.port = free_port()  # of the coordinator, on 127.0.0.1
    self._processes = []
    for number, path in enumerate(self._outputs):
      cluster = (
        f'--coordinator=127.0.0.1:{self.port}',
        f'--num_processes={count}',
        f'--process_id={number}',
      )
      command = programs.command('train', programs.CONFIG, f'--workdir={workdir}', *flags, *cluster)
      command += [f'--heartbeat_timeout={HEARTBEAT}', f'--start_timeout={PATIENCE}']
      if supervised:
        command = ['sh', 'launch/supervise.sh', '-p', '1', *command]
      with path.open('w') as output:
        self._processes.append(
          subprocess.Popen(
            command,
            cwd=programs.ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
          )
        )

  def __enter__(self):
    return self

  def __exit__(self, *unused):
    for process in self._processes:
      with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
      process.wait()

  def wait_for_step(self, step: int) -> None:
    """Returns when the run has logged `step` or a later one."""
    deadline = time.monotonic() + PATIENCE
    while not any(line['step'] >= step for line in programs.lines(self.workdir)[-1:]):
      assert time.monotonic() < deadline and None in self.codes(), self.output()
      time.sleep(0.01)

  def send(self, number: int, process: int) -> None:
    """Sends a signal to one process, not to the shell around it."""
    os.kill(self.pid(process), number)

  def pid(self, process: int) -> int:
    """Returns the id of the run's own process, also where a supervising shell runs it."""
    outer = self._processes[process].pid
    if not self._supervised:
      return outer
    children = Path(f'/proc/{outer}/task/{outer}/children')
    return int(children.read_text().split()[0])

  def wait_for_end(self, pid: int) -> None:
    """Returns when a process has ended, which must be within the heartbeat plus
    what a busy machine adds.
    """
    deadline = time.monotonic() + HEARTBEAT + 30
    while Path(f'/proc/{pid}').exists():
      assert time.monotonic() < deadline, self.output()
      time.sleep(0.05)

  def codes(self) -> list[int | None]:
    """Returns the exit codes so far, None for a process that still runs."""
    return [process.poll() for process in self._processes]

  def wait(self) -> list[int]:
    """Returns the exit codes when all have ended."""
    deadline = time.monotonic() + PATIENCE
    while None in self.codes():
      assert time.monotonic() < deadline, self.output()
      time.sleep(0.05)
    return self.codes()

  def output(self, process: int | None = None) -> str:
    """Returns what one process or all have written so far."""
    paths = self._outputs if process is None else [self._outputs[process]]
    return '\n----\n'.join(path.read_text() for path in paths)


def check(count: int, workdir: Path, *flags: str) -> str:
  """Returns the output of a run that must succeed."""
  with Group(count, workdir, *flags) as group:
    assert group.wait() == [0] * count, group.output()
    return group.output()


def free_port():
  with socket.socket() as taken:
    taken.bind(('127.0.0.1', 0))
    return taken.getsockname()[1]
