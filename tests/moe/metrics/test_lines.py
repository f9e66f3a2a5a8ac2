"""The end of metrics.jsonl, as kills, crashes and editors leave it."""

import json
import re
import time

import pytest

from moe.errors import UserError
from moe.metrics import lines


def line(step, **values):
  return json.dumps({'step': step, 'loss': 1.5, **values}) + '\n'


def content(*steps):
  return ''.join(map(line, steps)).encode()


NULS = b'\0' * 100


@pytest.mark.parametrize(
  'before, step, after',
  [
    (content(1, 2, 3), 3, content(1, 2, 3)),
    (content(1, 2, 3), 2, content(1, 2)),
    (content(1, 2, 3), 0, b''),
    (content(10, 20, 30), 20, content(10, 20)),
    (b'', 0, b''),
    # A kill while a line was being written.
    (content(1, 2) + b'{"step": 3, "lo', 2, content(1, 2)),
    (content(1, 2, 3) + b'{"step": 4', 2, content(1, 2)),
    (content(1, 2) + line(3).encode()[:-1], 2, content(1, 2)),
    # A crash of the machine.
    (content(1, 2) + NULS, 2, content(1, 2)),
    (content(1, 2) + NULS + b'\n', 2, content(1, 2)),
    (content(1, 2) + b'\n\n', 2, content(1, 2)),
    # Damage after the checkpoint is removed with the later steps, which the run writes again.
    (content(1, 2, 3) + b'\xff\n' + content(5), 2, content(1, 2)),
    # Lines further back than needed are not read.
    (b'\xff\n' + content(2, 3), 3, b'\xff\n' + content(2, 3)),
    # Two programs once wrote the same file.
    (content(1, 2, 3, 1, 2, 3, 4), 3, content(1, 2, 3, 1, 2, 3)),
  ],
)
def test_lines_of_later_steps_are_taken_back(tmp_path, before, step, after):
  path = tmp_path / 'metrics.jsonl'
  path.write_bytes(before)
  lines.take_back(path, step)
  assert path.read_bytes() == after
  assert [found.name for found in tmp_path.iterdir()] == ['metrics.jsonl']


@pytest.mark.parametrize(
  'damaged',
  [
    b'no JSON\n',
    b'\xff\xfe\n',
    b'{"loss": 1}\n',
    b'\n',
    b'[1]\n',
    b'{"step": "3"}\n',
    b'{"step": true}\n',
    b'{"step": null}\n',
    b'[' * 100_000 + b'\n',
    NULS + b'\n',
  ],
)
def test_a_damaged_line_that_may_be_of_a_step_before_is_named_and_nothing_changed(
  tmp_path, damaged
):
  path = tmp_path / 'metrics.jsonl'
  before = content(1, 2) + damaged + content(4, 5)
  path.write_bytes(before)
  with pytest.raises(UserError, match=f'{re.escape(str(path))}, line 3 is damaged') as error:
    lines.take_back(path, 3)
  assert '\n' not in str(error.value)
  assert path.read_bytes() == before


def test_what_is_lost_for_good_is_told_and_kept_beside(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  path.write_bytes(content(1, 2) + b'{"step": 3, \xff}\n')
  told = lines.take_back(path, 3)
  assert 'has no line of step 3' in told and 'its last is 2' in told
  assert path.read_bytes() == content(1, 2)
  assert (tmp_path / 'metrics.jsonl.damaged').read_bytes().startswith(b'{"step": 3, \xff}\n')
  assert 'step 3' in lines.take_back(tmp_path / 'missing', 3)


def test_lines_longer_than_what_is_read_at_once(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  long = [line(step, loads=[0.125] * 40_000) for step in (1, 2, 3)]
  path.write_text(''.join(long))
  assert lines.last_up_to(path, 2)['step'] == 2
  lines.take_back(path, 2)
  assert path.read_text() == ''.join(long[:2])


def test_a_restart_does_not_read_what_lies_before_the_end(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  with path.open('w') as file:
    for step in range(1, 200_001):
      file.write(line(step, held_out_loss_by_domain={'a': 1.0}))
  began = time.perf_counter()
  lines.take_back(path, 199_990)
  assert time.perf_counter() - began < 0.5
  assert lines.last_up_to(path, 10**9)['step'] == 199_990


def test_values_are_added_to_the_last_line(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  path.write_text(line(1) + line(2, x=0.1))
  lines.amend_last(path, {'held_out_loss': float('nan'), 'by': {'a': 2.5}})
  assert path.read_text() == line(1) + line(2, x=0.1, held_out_loss=None, by={'a': 2.5})
