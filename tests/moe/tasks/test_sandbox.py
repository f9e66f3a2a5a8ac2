"""Code written by a model: which answers pass, and what the kernel keeps code from doing."""

import platform
import sys

import pytest

from moe.tasks import loaders, sandbox

pytestmark = pytest.mark.skipif(
  sys.platform != 'linux' or platform.machine() not in ('x86_64', 'aarch64'),
  reason='the filter is for Linux on x86-64 and ARM64',
)


def test_what_is_kept_from_it(tmp_path):
  kept = tmp_path / 'kept'
  kept.write_text('here')
  programs = {
    'assert 1 + 1 == 2 and "中😀"[0] == chr(0x4E2D)': True,
    'import math, json, hashlib, re, collections\nassert hashlib.md5(b"").digest()': True,
    'x = bytearray(100 << 20)\nassert len(x)': True,
    f'assert open({str(kept)!r}).read() == "here"': True,
    'assert False': False,
    'def f(:': False,
    'import sys; sys.exit(0)': False,
    'import os; os._exit(0)': False,
    'x = bytearray(3 << 30)': False,
    'import socket; socket.socket()': False,
    'import os; os.fork()': False,
    'import subprocess; subprocess.run(["true"])': False,
    f'open({str(kept)!r}, "w")': False,
    f'import os; os.remove({str(kept)!r})': False,
    'open("new", "w")': False,
    'import os; os.kill(os.getppid(), 9)': False,
  }
  assert dict(zip(programs, sandbox.run_all(list(programs)), strict=True)) == programs
  assert kept.read_text() == 'here'


def test_its_time_ends():
  assert not sandbox.passes('while True: pass', seconds=1)


def test_answers_of_both_benchmarks():
  right, wrong = '  return a + b\n', '  return a * b\n'
  docs = [
    {
      'prompt': 'def add(a, b):\n',
      'entry_point': 'add',
      'test': 'def check(f):\n  assert f(2, 3) == 5',
    }
  ]
  assert loaders.humaneval([[right, wrong]], docs) == [[True, False]]
  assert loaders.pass_at_1(docs[0], [[True, False]]) == {'pass_at_1': 0.5}
  docs = [{'test_list': ['assert add(2, 3) == 5', 'assert add(1, 1) == 2']}]
  assert loaders.mbpp([[f'def add(a, b):\n{right}', f'def add(a, b):\n{wrong}']], docs) == [
    [True, False]
  ]
