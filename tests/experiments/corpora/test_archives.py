import bz2
import gzip
import os
import zipfile

import pytest
import zstandard

from experiments.corpora import archives
from moe.errors import UserError
from tests.experiments.corpora import helpers

FILES = {'b/two.txt': b'2', 'a/one.txt': b'1', 'a/one.log': b'-', 'a/x/three.txt': b'3'}


def texts(cache, package, *patterns, without=()):
  return list(archives.members(archives.fetch(package, cache), patterns, without))


@pytest.mark.parametrize('ecosystem', helpers.MAKE)
def test_members_by_pattern_in_order(tmp_path, ecosystem):
  package = helpers.cached(tmp_path, ecosystem, FILES)
  assert texts(tmp_path, package, '*.txt') == [
    ('a/one.txt', b'1'),
    ('a/x/three.txt', b'3'),
    ('b/two.txt', b'2'),
  ]
  assert texts(tmp_path, package, 'a/*', 'b/*', without=('*.log', '*/x/*')) == [
    ('a/one.txt', b'1'),
    ('b/two.txt', b'2'),
  ]


def test_compressed_members_come_decompressed(tmp_path):
  package = helpers.cached(
    tmp_path, 'debian', {'p.1.gz': gzip.compress(b'page'), 'w.bz2': bz2.compress(b'wiki')}
  )
  assert texts(tmp_path, package, '*') == [('p.1.gz', b'page'), ('w.bz2', b'wiki')]


def test_other_bytes_than_pinned(tmp_path):
  package = helpers.cached(tmp_path, 'pypi', FILES)
  pinned = package._replace(sha256='0' * 64)
  with pytest.raises(UserError) as error:
    archives.fetch(pinned, tmp_path)
  message = str(error.value)
  assert '\n' not in message
  for part in (
    str(archives.place(package, tmp_path)),
    package.sha256,
    '0' * 64,
    'novel 1.0',
    '--allow_other_versions',
  ):
    assert part in message
  archive = archives.fetch(pinned, tmp_path, other_versions=True)
  assert (archive.pinned, archive.sha256) == (False, package.sha256)


@pytest.mark.parametrize('ecosystem', helpers.MAKE)
@pytest.mark.parametrize('contents', [b'', b'no archive', b'!<arch>\nshort'])
def test_damaged_archive(tmp_path, ecosystem, contents):
  package = helpers.cached(tmp_path, ecosystem, FILES)
  archives.place(package, tmp_path).write_bytes(contents)
  archive = archives.fetch(package, tmp_path, other_versions=True)
  with pytest.raises(UserError, match=r'novel-1\.0\.\w+: damaged or no archive of') as error:
    list(archives.members(archive, ['*']))
  assert '\n' not in str(error.value)


def member(name, data, size=None):
  written = len(data) if size is None else size
  return f'{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{written:<10}`\n'.encode() + data


def damaged_wheel():
  """A wheel whose first file has a byte in its deflate stream that zlib refuses."""
  whole = helpers.wheel({'a': b'text ' * 400}, zipfile.ZIP_DEFLATED)
  return whole[:35] + b'\xff' * 8 + whole[43:]


@pytest.mark.parametrize(
  ('ecosystem', 'contents', 'reason'),
  [
    ('debian', b'!<arch>\n' + member('data.tar.xz', b'', -60), 'a member of -60 bytes'),
    ('debian', b'!<arch>\n' + member('control.tar', b'', -60), 'a member of -60 bytes'),
    ('debian', b'!<arch>\n' + member('data.tar.zst', b'no zstd'), ''),
    ('debian', b'!<arch>\n' + member('data.tar.xz', b'\xfd7zXZ\0', 999), ''),
    ('pypi', damaged_wheel(), ''),
    ('npm', gzip.compress(helpers.tar({'a': b'text'}), mtime=0)[:-30], ''),
    ('npm', helpers.tar({'p.gz': gzip.compress(b'page' * 99, mtime=0)[:-9]}), ''),
    ('npm', helpers.tar({'p.gz': b'no gzip'}), ''),
  ],
)
def test_damage_is_one_line(tmp_path, ecosystem, contents, reason):
  package = helpers.cached(tmp_path, ecosystem, FILES)
  archives.place(package, tmp_path).write_bytes(contents)
  archive = archives.fetch(package, tmp_path, other_versions=True)
  with pytest.raises(UserError, match=f'damaged or no archive of {ecosystem}: .*{reason}') as error:
    list(archives.members(archive, ['*']))
  assert '\n' not in str(error.value)


def test_files_that_unpack_to_too_much(tmp_path, monkeypatch):
  monkeypatch.setattr(archives, '_LARGEST', 1000)
  for files in ({'a': b'0' * 1001}, {'a.gz': gzip.compress(b'0' * 1001, mtime=0)}):
    for ecosystem in helpers.MAKE:
      package = helpers.cached(tmp_path, ecosystem, files)
      with pytest.raises(UserError, match='1000'):
        texts(tmp_path, package, '*')


def test_a_deb_compressed_by_zstd(tmp_path):
  data = zstandard.ZstdCompressor().compress(helpers.tar(FILES, './'))
  package = helpers.cached(tmp_path, 'debian', FILES)
  deb = b'!<arch>\n' + member('debian-binary', b'2.0\n') + member('data.tar.zst', data)
  archives.place(package, tmp_path).write_bytes(deb)
  archive = archives.fetch(package, tmp_path, other_versions=True)
  assert [path for path, _ in archives.members(archive, ['*.txt'])] == [
    'a/one.txt',
    'a/x/three.txt',
    'b/two.txt',
  ]


def fake_apt(tmp_path, monkeypatch, script):
  helpers.client(tmp_path / 'bin', 'apt-get', script)
  monkeypatch.setenv('PATH', f'{tmp_path / "bin"}{os.pathsep}{os.environ["PATH"]}')


def test_fetches_once_and_keeps_nothing_of_a_failure(tmp_path, monkeypatch):
  package = helpers.cached(tmp_path / 'mirror', 'debian', FILES, version='2:1.0')
  source = archives.place(package, tmp_path / 'mirror')
  fake_apt(
    tmp_path, monkeypatch, f'test "$3" = "novel=2:1.0" && cp "{source}" novel_2%3a1.0_all.deb'
  )
  archive = archives.fetch(package, tmp_path / 'cache')
  assert archive.pinned
  assert list((tmp_path / 'cache').iterdir()) == [archive.path]
  fake_apt(tmp_path, monkeypatch, 'exit 1')
  assert archives.fetch(package, tmp_path / 'cache') == archive


def test_version_that_is_gone(tmp_path, monkeypatch):
  package = helpers.cached(tmp_path / 'mirror', 'debian', FILES)
  source = archives.place(package, tmp_path / 'mirror')
  message = "E: Version '1.0' for 'novel' was not found"
  gone = f"""test "$3" = novel=1.0 && {{ echo "W: x" >&2; echo "{message}" >&2; exit 100; }}"""
  fake_apt(tmp_path, monkeypatch, f'{gone}\ncp "{source}" novel_1.1_all.deb')
  with pytest.raises(
    UserError, match=r"^novel 1\.0 of debian cannot be fetched: E: Version '1\.0' for .* not found"
  ) as error:
    archives.fetch(package, tmp_path / 'cache')
  assert '\n' not in str(error.value) and '--allow_other_versions' in str(error.value)
  assert list((tmp_path / 'cache').iterdir()) == []
  archive = archives.fetch(package, tmp_path / 'cache', other_versions=True)
  assert (archive.path.name, archive.pinned) == ('novel_1.1_all.deb', False)
  assert archives.fetch(package, tmp_path / 'cache', other_versions=True) == archive
  assert len(list(archives.members(archive, ['*.txt']))) == 3


def test_no_client(tmp_path, monkeypatch):
  package = helpers.cached(tmp_path, 'npm', FILES)._replace(version='2.0')
  monkeypatch.setenv('PATH', str(tmp_path))
  with pytest.raises(
    UserError, match=r"^novel 2\.0 of npm cannot be fetched: no program 'npm' here$"
  ):
    archives.fetch(package, tmp_path)
