"""The memory of a step on CPU stays with the process."""

import platform
import subprocess
import sys

import pytest

from tests.runs import programs

# Takes and frees blocks as a step does, from a thread that is not the first, as XLA's are.
_STEPS = """
import ctypes, resource, sys, threading
from moe.host_memory import keep_freed_memory
if sys.argv[1] == 'keep':
  keep_freed_memory()
c = ctypes.CDLL(None)
c.malloc.restype, c.malloc.argtypes, c.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
def step():
  block = c.malloc(130 << 20)
  ctypes.memset(block, 1, 130 << 20)
  c.free(block)
def steps():
  step()
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  for _ in range(10):
    step()
  print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 10)
thread = threading.Thread(target=steps)
thread.start()
thread.join()
"""


def _page_faults(which):
  command = [sys.executable, '-c', _STEPS, which]
  return int(subprocess.run(command, cwd=programs.ROOT, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='glibc alone is told to keep memory')
def test_a_large_block_of_a_thread_is_not_mapped_again_at_every_step():
  assert _page_faults('keep') < 10
  assert _page_faults('leave') > 50  # 33,280; where the kernel gives huge pages unasked, 65
