"""Keeps glibc from returning memory to the kernel between two steps on CPU."""

import ctypes
import importlib.metadata
import importlib.util
import os

# From malloc.h; not exported by the C library under any other name.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8


def keep_freed_memory() -> None:
  """From now on freed memory stays with the process,
  so that the next step need not have the kernel zero it again.

  XLA:CPU takes its temporary buffers, hundreds of MiB, from malloc at every step, and packs
  operands into more; at proxy scale a step met 30,000 page faults, a fifth of its time. Call it
  before threads start. Elsewhere than on glibc it does nothing, nor where jax computes on something
  else: a host that feeds accelerators would hold for good what one checkpoint took.
  """
  if not _computes_on_cpu():
    return
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except (AttributeError, OSError, TypeError):  # musl, macOS, Windows
    return
  # One arena, the only one that can hold a block of more than 64 MiB: a thread's own has the kernel
  # map each anew, whatever _MMAP_MAX says. What one thread has freed then serves all others, too.
  mallopt(_ARENA_MAX, 1)
  mallopt(_MMAP_MAX, 0)  # no mapping of its own for a large block, which would go back when freed
  mallopt(_TRIM_THRESHOLD, -1)  # never
  mallopt(_TOP_PAD, 128 << 20)


def _computes_on_cpu() -> bool:
  """Whether jax will: it is told to, or has nothing else.
  Importing it to ask would start threads.
  """
  if platforms := os.environ.get('JAX_PLATFORMS'):
    return platforms == 'cpu'
  return (
    not importlib.metadata.entry_points(group='jax_plugins')
    and importlib.util.find_spec('libtpu') is None
  )
