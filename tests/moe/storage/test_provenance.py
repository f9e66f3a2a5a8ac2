"""Where a run's parts were computed, and what is reported when that differs."""

import json

import pytest

from moe.storage import provenance

NOW = {
  'commit': 'a1',
  'dirty': False,
  'versions': {'python': '3.11', 'jax': '0.10.2'},
  'command': 'python -m launch.train',
  'machine': {'cpu': '2 × X', 'devices': '1 × cpu', 'processes': 1},
  'host': 'here',
}


def parts(folder):
  return json.loads((folder / provenance.FILE).read_text())


def test_this_process_is_described():
  found = provenance.describe()
  assert found.keys() == NOW.keys() and found['versions'].keys() >= {'python', 'jax', 'flax'}


def test_the_same_again_is_counted_and_not_told(tmp_path):
  assert provenance.note(tmp_path, NOW) == provenance.note(tmp_path, NOW) == ''
  (part,) = parts(tmp_path)
  assert part['starts'] == 2 and part['first_start'] <= part['last_start']


@pytest.mark.parametrize(
  'other, told',
  [
    ({'commit': 'b2'}, 'commit a1 then, b2 now'),
    ({'dirty': True}, 'dirty False then, True now'),
    ({'versions': {'python': '3.13', 'jax': '0.10.2'}}, 'python 3.11 then, 3.13 now'),
    ({'machine': {**NOW['machine'], 'devices': '8 × tpu'}}, 'devices 1 × cpu then, 8 × tpu now'),
    ({'host': 'there', 'command': 'other'}, ''),
  ],
)
def test_what_differs_is_told_and_kept(tmp_path, other, told):
  provenance.note(tmp_path, NOW)
  line = provenance.note(tmp_path, NOW | other)
  assert told in line and bool(line) == bool(told) and '\n' not in line
  assert [part['starts'] for part in parts(tmp_path)] == [1, 1]


@pytest.mark.parametrize('damage', [b'', b'{}', b'[3]', b'\xff', b'[{"commit": '])
def test_a_damaged_file_is_set_aside_and_said(tmp_path, damage):
  (tmp_path / provenance.FILE).write_bytes(damage)
  assert 'is damaged' in provenance.note(tmp_path, NOW)
  assert (tmp_path / 'provenance.json.damaged').read_bytes() == damage
  assert len(parts(tmp_path)) == 1


def test_the_source_of_a_warm_start_is_that_of_the_last_part(tmp_path):
  assert provenance.source(tmp_path) is None
  provenance.note(tmp_path, NOW)
  assert provenance.source(tmp_path) is None
  source = {'path': '/runs/a', 'step': 30, 'checksum': '0a1b2c3d'}
  provenance.note(tmp_path, NOW | {provenance.SOURCE: source})
  assert provenance.source(tmp_path) == source
  assert provenance.source_in_words(source) == '/runs/a, step 30 (checksum 0a1b2c3d)'
  (tmp_path / provenance.FILE).write_text('[{"init_from": 3}]')
  assert provenance.source(tmp_path) is None and provenance.source_in_words(None) == ''
