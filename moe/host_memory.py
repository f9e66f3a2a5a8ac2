"""The memory of this process: checks that it may have enough, and keeps what a step has freed."""

import ctypes
import importlib.metadata
import importlib.util
import os
import re
import resource
from pathlib import Path
from typing import NamedTuple

from moe.errors import UserError

# Macros of malloc.h, which the C library does not export.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8


class Need(NamedTuple):
  """Bytes that a program takes with the smallest model on two cores; a larger one takes more."""

  # Virtual memory, which `ulimit -v` limits. Most of it is thread stacks, little of them in use.
  addresses: int
  # Resident memory, which a container limits.
  resident: int


# VmPeak and VmHWM of /proc/self/status are 1,998 and 723 MiB after 2 steps of
# tests/launch/runs/config.py, and 1,039 and 516 MiB after launch.generate on that run. 200 MiB of
# VmHWM are files of libraries, which the kernel can drop.
TRAINING = Need(2100 << 20, 520 << 20)
SAMPLING = Need(1100 << 20, 320 << 20)
# Threads of each further core, measured likewise with PJRT_NPROC=64: 2,983 MiB.
_A_CORE = 16 << 20
_CGROUPS = Path('/sys/fs/cgroup')


def require(need: Need) -> None:
  """Raises UserError if this process may not have that much memory. Call it before jax starts.

  Otherwise a thread that gets no stack or no buffer leaves the others waiting for ever, or the
  kernel ends the process without a word.
  """
  cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else 1
  addresses = need.addresses + _A_CORE * max(cores - 2, 0)
  limit, _ = resource.getrlimit(resource.RLIMIT_AS)
  if limit != resource.RLIM_INFINITY and limit < addresses:
    raise UserError(
      f'too little memory: this process may have {_mib(limit)} of addresses (ulimit -v '
      f'{limit >> 10}), and needs {_mib(addresses)} on {cores} cores for the smallest of models: '
      'raise the limit, or take it away'
    )
  for file in _limits_of_container():
    text = file.read_text(encoding='ascii').strip() if file.is_file() else 'max'
    if text.isdigit() and int(text) < need.resident:
      raise UserError(
        f'too little memory: {file} allows {_mib(int(text))}, and {_mib(need.resident)} are needed '
        'for the smallest of models: raise the limit of the container or job'
      )


def _limits_of_container():
  """The files that limit this process's memory, for versions 2 and 1 of control groups."""
  try:
    groups = Path('/proc/self/cgroup').read_text(encoding='utf-8').splitlines()
  except OSError:
    groups = []
  found = [_CGROUPS / 'memory.max', _CGROUPS / 'memory/memory.limit_in_bytes']
  for _, controllers, path in (line.split(':', 2) for line in groups):
    if not controllers:
      found.append(_CGROUPS / path.lstrip('/') / 'memory.max')
    elif 'memory' in controllers.split(','):
      found.append(_CGROUPS / 'memory' / path.lstrip('/') / 'memory.limit_in_bytes')
  return found


def _mib(size):
  return f'{size >> 20:,} MiB'


def keep_freed_memory() -> None:
  """Makes freed memory stay with the process, so that the kernel need not zero it again for the
  next step. Call it before threads start.

  At every step XLA:CPU takes hundreds of MiB of temporary buffers from malloc, and packs operands
  into more; at proxy scale a step met 30,000 page faults, a fifth of its time.

  It does nothing without glibc. It does nothing where accelerators compute: their host would hold
  for good what one checkpoint took. It does nothing for several simulated devices: their buffers
  come and go at once, and the process would grow to twice its size (docs/parallelism.md).
  """
  if not _computes_on_cpu() or _simulates_devices():
    return
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except (AttributeError, OSError, TypeError):  # musl, macOS, Windows
    return
  # Only the main arena can hold a block of more than 64 MiB: in a thread's own the kernel maps each
  # anew, whatever _MMAP_MAX says. With one arena, what one thread frees also serves all others.
  mallopt(_ARENA_MAX, 1)
  mallopt(_MMAP_MAX, 0)  # a large block in a mapping of its own would go back when freed
  mallopt(_TRIM_THRESHOLD, -1)  # never trim
  mallopt(_TOP_PAD, 128 << 20)


def _computes_on_cpu() -> bool:
  """Whether jax will compute on the CPU: it is told to, or has nothing else.
  Importing jax to ask would start threads.
  """
  if platforms := os.environ.get('JAX_PLATFORMS'):
    return platforms == 'cpu'
  return (
    not importlib.metadata.entry_points(group='jax_plugins')
    and importlib.util.find_spec('libtpu') is None
  )


def _simulates_devices() -> bool:
  """Whether jax is told to simulate several devices on this machine's CPU."""
  told = re.findall(
    r'--xla_force_host_platform_device_count=(\d+)', os.environ.get('XLA_FLAGS', '')
  )
  told.append(os.environ.get('JAX_NUM_CPU_DEVICES', '0'))
  return any(number.isdigit() and int(number) > 1 for number in told)
