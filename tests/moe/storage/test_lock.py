"""Who holds a run's folder, and whose death lets another process in."""

import json
import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from moe.errors import TryAgain
from moe.storage import lock


@pytest.fixture(autouse=True)
def quick(monkeypatch):
  monkeypatch.setattr(lock, 'BEAT', 0.05)
  monkeypatch.setattr(lock, 'SILENCE', 0.6)


def holder(**changed):
  return lock._this_process() | changed


def put(folder, content):
  (folder / '.lock').write_text(content if isinstance(content, str) else json.dumps(content))


def test_a_second_program_is_told_host_process_and_since_when(tmp_path):
  hold = lock.acquire(tmp_path)
  since = json.loads((tmp_path / '.lock').read_text())['since']
  with pytest.raises(TryAgain) as refused:
    lock.acquire(tmp_path)
  for word in (str(tmp_path), f'process {os.getpid()} on {socket.gethostname()}, since {since}'):
    assert word in str(refused.value)
  hold.close()
  again = lock.acquire(tmp_path)
  assert again.taken_over == ''
  again.close()


def test_a_living_process_elsewhere_on_this_machine_keeps_it(tmp_path):
  code = (
    'import sys, pathlib; from moe.storage import lock; lock.acquire(pathlib.Path(sys.argv[1]));'
    'print("held", flush=True); sys.stdin.read()'
  )
  process = subprocess.Popen(
    [sys.executable, '-c', code, str(tmp_path)],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == 'held\n'
  with pytest.raises(TryAgain, match=f'process {process.pid} on'):
    lock.acquire(tmp_path)
  process.kill()
  # It is dead, though its parent has not yet reaped it.
  time.sleep(0.2)
  hold = lock.acquire(tmp_path)
  assert f'process {process.pid}' in hold.taken_over and 'has ended' in hold.taken_over
  hold.close()
  process.communicate()


@pytest.mark.parametrize(
  'left',
  [
    {'process': 2**22 + 1},  # beyond the largest number that Linux gives
    {'started': '1'},  # the number belongs to another process by now
    {'host': 'elsewhere'},
    {'boot': 'before the machine was started again'},
    {'namespace': 'pid:[1]'},
    '{"host": "half a li',
    '[]',
    '\0\0\0\0',
    '',
  ],
)
def test_the_lock_of_a_dead_or_silent_holder_is_taken_over(tmp_path, left):
  put(tmp_path, left if isinstance(left, str) else holder(token='other') | left)
  hold = lock.acquire(tmp_path)
  assert bool(hold.taken_over) == bool(left)
  hold.check()
  hold.close()
  assert (tmp_path / '.lock').read_bytes() == b''


def test_one_on_another_machine_that_gives_signs_keeps_it(tmp_path):
  put(tmp_path, holder(host='elsewhere', token='other'))
  ended = threading.Event()

  def beat():
    while not ended.wait(0.1):
      os.utime(tmp_path / '.lock')

  heart = threading.Thread(target=beat)
  heart.start()
  try:
    with pytest.raises(TryAgain, match='on elsewhere, since'):
      lock.acquire(tmp_path)
  finally:
    ended.set()
    heart.join()


def test_a_holder_shows_that_it_lives(tmp_path):
  hold = lock.acquire(tmp_path)
  os.utime(tmp_path / '.lock', (1, 1))
  deadline = time.monotonic() + 5
  while (tmp_path / '.lock').stat().st_mtime < 2 and time.monotonic() < deadline:
    time.sleep(0.02)
  hold.close()
  assert (tmp_path / '.lock').stat().st_mtime > 2


def test_a_holder_that_was_taken_for_dead_finds_out_and_leaves_the_lock_to_the_other(tmp_path):
  hold = lock.acquire(tmp_path)
  put(tmp_path, holder(host='elsewhere', token='other'))
  with pytest.raises(TryAgain, match=r'was taken over by process .* on elsewhere'):
    hold.check()
  hold.close()
  assert json.loads((tmp_path / '.lock').read_text())['token'] == 'other'
