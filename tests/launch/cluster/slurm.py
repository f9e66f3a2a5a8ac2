"""A Slurm cluster of two nodes on this machine, from Debian's packages:
real daemons, whose files are all in one folder.

It changes no file of the system and takes no fixed port:
configuration, keys, sockets and state are in the folder.
"""

import contextlib
import getpass
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests import debian
from tests.debian import CannotRun

_HOST = socket.gethostname().split('.')[0]
# JAX connects to the first node in the order of their names, so only that one must resolve: this
# machine's own name does, and the other needs no line in /etc/hosts. (Slurm treats the name
# localhost specially.)
NODES = (_HOST, f'{_HOST}x')
_JAX_PORTS = range(65536 - 4096, 65536)  # JAX's coordinator takes the first + job id modulo 4096


class Cluster:
  """slurmctld, a slurmd for each node, and a munged, from `start` to `stop`."""

  def __init__(self, folder: Path):
    self.folder = folder
    self.environment = os.environ | {'SLURM_CONF': str(folder / 'slurm.conf')}
    self._daemons: list[subprocess.Popen] = []

  def start(self) -> None:
    """Returns when both nodes are idle. Raises CannotRun without Slurm, or,
    with the daemons' last words, after 60 s.
    """
    debian.find(debian.SLURM)
    try:
      socket.gethostbyname(_HOST)
    except OSError as error:
      raise CannotRun(f"this machine's own name, {_HOST}, does not resolve: {error}") from error
    self._configure()
    key, socket_path = self.folder / 'munge.key', self.folder / 'munge.socket'
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    files = (f'--{name}-file={self.folder}/munge.{name}' for name in ('pid', 'log', 'seed'))
    # --force: the socket may lie in a folder that is not open to everyone.
    self._daemon(
      'munged', '--foreground', '--force', f'--key-file={key}', f'--socket={socket_path}', *files
    )
    self._wait_for('munged', socket_path.exists)
    self._daemon('slurmctld', '-D', '-c')
    for node in NODES:
      self._daemon('slurmd', '-D', '-N', node)
    self._wait_for('idle nodes', self._all_idle)

  def stop(self) -> None:
    """Ends the daemons, and whatever they started: every process that has this
    cluster in its environment.
    """
    for daemon in reversed(self._daemons):
      # Not SIGTERM: slurmd would wait for its jobs, and nothing that they save is wanted any more.
      daemon.kill()
      daemon.wait(10)
    deadline = time.monotonic() + 10
    while (left := list(self.processes())) and time.monotonic() < deadline:
      for process in left:
        with contextlib.suppress(ProcessLookupError):
          os.kill(process, signal.SIGKILL)
      time.sleep(0.05)

  def run(
    self, *command: str, cwd=None, environment=None, timeout=20
  ) -> subprocess.CompletedProcess:
    """Runs one of Slurm's commands on this cluster."""
    environment = self.environment | (environment or {})
    return subprocess.run(
      command, env=environment, cwd=cwd, capture_output=True, text=True, timeout=timeout
    )

  def check(self, *command: str, **options) -> str:
    """stdout of a command that must succeed."""
    done = self.run(*command, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout

  def job(self, number: str) -> dict[str, str]:
    """What Slurm says of a job: JobState, ExitCode, Restarts, …"""
    shown = self.check('scontrol', '--oneliner', 'show', 'job', number)
    return dict(field.split('=', 1) for field in shown.split() if '=' in field)

  def wait(self, number: str, timeout: float) -> dict[str, str]:
    """Returns `job` once it has ended for good, after any requeueing,
    or as it is after `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    while True:
      job = self.job(number)
      ended = job['JobState'] not in ('PENDING', 'CONFIGURING', 'RUNNING', 'COMPLETING', 'REQUEUED')
      if ended or time.monotonic() > deadline:
        return job
      time.sleep(0.3)

  def processes(self) -> Iterator[int]:
    """Yields the process ids of the daemons, of those that watch over jobs
    (slurmstepd), and of the jobs themselves.
    """
    mark = f'SLURM_CONF={self.folder}/slurm.conf'.encode()
    for entry in Path('/proc').iterdir():
      with contextlib.suppress(OSError):  # it has ended meanwhile, or is another user's
        if entry.name.isdigit() and mark in (entry / 'environ').read_bytes():
          yield int(entry.name)

  def logs(self) -> str:
    """The last lines of every daemon's log."""
    return '\n'.join(
      f'{path.name}: {path.read_text()[-2000:]}' for path in sorted(self.folder.glob('*.log'))
    )

  def _configure(self):
    control, *nodes, jax = _free_ports(1 + len(NODES))
    for name in ('state', *(f'spool-{node}' for node in NODES)):
      (self.folder / name).mkdir()
    lines = [
      'ClusterName=test',
      f'SlurmctldHost={_HOST}(127.0.0.1)',
      f'SlurmctldPort={control}',
      *(f'{user}={getpass.getuser()}' for user in ('SlurmUser', 'SlurmdUser')),
      # cred_expire: a requeued job waits until its old credentials have lapsed,
      # by default two minutes.
      f'AuthInfo=socket={self.folder}/munge.socket,cred_expire=5',
      f'FirstJobId={jax - _JAX_PORTS.start + 4096}',
      f'StateSaveLocation={self.folder}/state',
      f'SlurmdSpoolDir={self.folder}/spool-%n',
      f'SlurmctldPidFile={self.folder}/slurmctld.pid',
      f'SlurmdPidFile={self.folder}/slurmd-%n.pid',
      'ProctrackType=proctrack/linuxproc',  # no cgroups: a container has none to give
      'TaskPlugin=task/none',
      'MpiDefault=none',
      'ReturnToService=2',
      'SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0',
      'KillWait=5',
      *(
        f'NodeName={node} NodeAddr=127.0.0.1 Port={port} CPUs=1'
        for node, port in zip(NODES, nodes, strict=True)
      ),
      f'PartitionName=all Nodes={",".join(NODES)} Default=YES MaxTime=INFINITE State=UP',
    ]
    (self.folder / 'slurm.conf').write_text('\n'.join(lines) + '\n')

  def _daemon(self, program, *arguments):
    name = '-'.join((program, *(a for a in arguments if a in NODES)))
    # A signal to the tests, such as Ctrl-C, does not reach the daemons;
    # but if the tests are killed, so are the daemons.
    command = ('setpriv', '--pdeathsig', 'KILL', program, *arguments)
    with open(self.folder / f'{name}.log', 'w') as log:
      self._daemons.append(
        subprocess.Popen(
          command,
          env=self.environment,
          stdin=subprocess.DEVNULL,
          stdout=log,
          stderr=log,
          start_new_session=True,
        )
      )

  def _all_idle(self):
    # The command times out if the daemon that it asks is still starting.
    with contextlib.suppress(subprocess.TimeoutExpired):
      return self.run('sinfo', '-h', '-o', '%T %D').stdout == f'idle {len(NODES)}\n'

  def _wait_for(self, what, ready, timeout=60):
    deadline = time.monotonic() + timeout
    while not ready():
      if time.monotonic() > deadline or any(daemon.poll() is not None for daemon in self._daemons):
        raise CannotRun(f'no {what} within {timeout} s:\n{self.logs()}')
      time.sleep(0.1)


def _free_ports(count):
  """Yields `count` free ports, and a free one of _JAX_PORTS."""
  with contextlib.ExitStack() as stack:
    for _ in range(count):
      stack.enter_context(taken := socket.socket()).bind(('127.0.0.1', 0))
      yield taken.getsockname()[1]
    while True:
      with socket.socket() as tried, contextlib.suppress(OSError):
        port = random.choice(_JAX_PORTS)
        tried.bind(('127.0.0.1', port))
        yield port
        return
