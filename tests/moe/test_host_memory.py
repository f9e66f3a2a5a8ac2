"""The process keeps a step's memory on CPU, and too little memory is told before jax starts."""

import os
import platform
import subprocess
import sys

import pytest

from moe import host_memory
from moe.errors import UserError
from tests.launch.runs import programs

# Allocates and frees blocks as a step does, from a second thread, as XLA does.
_STEPS = """
import ctypes, resource, sys, threading
from moe.host_memory import keep_freed_memory
if sys.argv[1] == 'keep':
  keep_freed_memory()
c = ctypes.CDLL(None)
c.malloc.restype, c.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
c.free.argtypes = [ctypes.c_void_p]
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


def _page_faults(which, platforms='cpu', devices=1):
  command = [sys.executable, '-c', _STEPS, which]
  flags = f'--xla_force_host_platform_device_count={devices}'
  environment = os.environ | {'JAX_PLATFORMS': platforms, 'XLA_FLAGS': flags}
  done = subprocess.run(
    command, cwd=programs.ROOT, env=environment, capture_output=True, text=True, check=True
  )
  return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='glibc alone is told to keep memory')
def test_a_large_block_of_a_thread_is_not_mapped_again_at_every_step():
  assert _page_faults('keep') < 10
  assert _page_faults('leave') > 50  # 33,280, or 65 where the kernel gives huge pages unasked
  assert _page_faults('keep', 'cuda') > 50  # a host that only feeds accelerators
  assert _page_faults('keep', devices=8) > 50


def test_jax_is_taken_to_compute_on_cpu_where_it_has_nothing_else(monkeypatch):
  plugins, libtpu = [], []
  monkeypatch.setattr(host_memory.importlib.metadata, 'entry_points', lambda group: plugins)
  monkeypatch.setattr(host_memory.importlib.util, 'find_spec', lambda name: libtpu or None)
  monkeypatch.delenv('JAX_PLATFORMS', raising=False)
  assert host_memory._computes_on_cpu()
  for installed in (plugins, libtpu):
    installed.append('something')
    assert not host_memory._computes_on_cpu()
    monkeypatch.setenv('JAX_PLATFORMS', 'cpu')
    assert host_memory._computes_on_cpu()
    monkeypatch.delenv('JAX_PLATFORMS')
    installed.clear()


def test_too_few_addresses_are_told_before_jax_starts(tmp_path):
  command = f'ulimit -v 1200000; exec {sys.executable} -m launch.train --config=proxy:dense'
  command += f' --workdir={tmp_path}/run'
  done = subprocess.run(
    ['bash', '-c', command], cwd=programs.ROOT, capture_output=True, text=True, timeout=60
  )
  assert done.returncode == 2 and done.stdout == ''
  (line,) = done.stderr.splitlines()
  assert line.startswith('error: too little memory') and 'ulimit -v 1200000' in line
  assert not any(tmp_path.iterdir())


@pytest.mark.parametrize('file', ['memory.max', 'memory/memory.limit_in_bytes'])
def test_the_limit_of_a_container(monkeypatch, tmp_path, file):
  monkeypatch.setattr(host_memory, '_CGROUPS', tmp_path)
  (tmp_path / 'memory').mkdir()
  for enough in ('max', str(1 << 40)):
    (tmp_path / file).write_text(f'{enough}\n')
    host_memory.require(host_memory.TRAINING)
  (tmp_path / file).write_text(f'{256 << 20}\n')
  with pytest.raises(UserError, match=r'too little memory: .* allows 256 MiB, and 520 MiB are'):
    host_memory.require(host_memory.TRAINING)
