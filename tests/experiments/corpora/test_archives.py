import bz2
import gzip
import os

import pytest

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
