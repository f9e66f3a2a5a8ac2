"""Small files are written whole or not at all, JSON is strict, folders are tried before work."""

import errno
import json
import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from moe import files
from moe.errors import UserError


def test_a_file_is_replaced_whole_and_a_failed_write_leaves_the_old_one(tmp_path, monkeypatch):
  path = tmp_path / 'a.json'
  files.replace(path, 'old ü')
  monkeypatch.setattr(os, 'fsync', lambda descriptor: (_ for _ in ()).throw(OSError(28, 'full')))
  with pytest.raises(OSError):
    files.replace(path, 'new')
  assert path.read_bytes() == 'old ü'.encode()


@pytest.mark.parametrize(
  'value, wanted',
  [
    ({'a': float('nan'), 'b': (1, float('inf'))}, {'a': None, 'b': [1, None]}),
    ([np.float32(0.1), np.int32(3), np.array([[1.0, np.nan]])],
     [float(np.float32(0.1)), 3, [[1.0, None]]]),
    ({'x': jnp.float32(-np.inf), 'y': True, 'z': None, 'w': 'NaN'},
     {'x': None, 'y': True, 'z': None, 'w': 'NaN'}),
  ],
)  # fmt: skip
def test_json_is_strict(value, wanted):
  refuse = lambda word: pytest.fail(f'{word} is no JSON')
  assert json.loads(files.to_json(value), parse_constant=refuse) == wanted


@pytest.mark.parametrize('content', [b'', b'[]', b'{"a": ', b'\xff', b'\0\0', b'3', b'[' * 10**5])
def test_what_is_no_object_is_said(tmp_path, content):
  (tmp_path / 'a').write_bytes(content)
  with pytest.raises(ValueError):
    files.read_json(tmp_path / 'a')


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match=f'cannot write results in {tmp_path}/file/below'):
    files.try_folder(tmp_path / 'file' / 'below', 'results')
  files.try_folder(tmp_path / 'new' / 'folder', 'results')
  assert list((tmp_path / 'new' / 'folder').iterdir()) == []


def test_a_folder_that_takes_no_file_is_named_with_what_it_is_for(tmp_path, monkeypatch):
  def refuse(*_, **__):
    raise OSError(errno.EROFS, 'Read-only file system', 'x')

  files.try_folder(tmp_path / 'new', 'the run')
  monkeypatch.setattr(Path, 'write_bytes', refuse)
  monkeypatch.setattr(Path, 'unlink', refuse)
  with pytest.raises(UserError, match=r'^cannot write the run in .*: x: Read-only file system$'):
    files.try_folder(tmp_path, 'the run')


def test_who_waits_for_a_lock_is_told_what_its_file_says(tmp_path):
  told = []

  def refuse(content):
    told.append(content)
    raise UserError('held')

  with files.locked(tmp_path / 'lock') as descriptor:
    os.write(descriptor, b'me')
    with pytest.raises(UserError), files.locked(tmp_path / 'lock', refuse):
      pass
  with files.locked(tmp_path / 'lock', refuse), files.locked(tmp_path, refuse):
    pass
  assert told == ['me']
