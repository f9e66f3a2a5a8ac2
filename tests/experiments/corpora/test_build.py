import hashlib
import json
import os
import subprocess
import sys

import pytest

from experiments.corpora import build, report
from experiments.corpora.build import Source
from experiments.corpora.readers import source as source_code
from experiments.corpora.sources import SOURCES
from moe.data.readers import read_texts
from moe.errors import UserError
from tests.experiments.corpora import helpers
from tests.moe.data.helpers import text


def plain(raw):
  yield raw.decode()


def files(domain, count):
  return {f'{domain}/{i:03d}.txt': (domain + text(i, 80)).encode() for i in range(count)}


def two_domains(cache):
  novel = helpers.cached(
    cache, 'debian', {**files('novel', 400), 'novel/copy.txt': files('novel', 1)['novel/000.txt']}
  )
  code = helpers.cached(cache, 'pypi', {**files('code', 150), 'code/bad.txt': b'\xff'}, name='code')
  return (
    Source('english', 'novel', novel, plain, ('novel/*',), prose=True),
    Source('code', 'code: slice', code, source_code.read, ('code/*',), cap=40_000),
    Source('code', 'made', None, lambda: [text(i, 90) for i in range(200, 230)]),
  )


def test_builds_the_same_bytes_twice_in_the_form_that_the_data_path_reads(tmp_path):
  sources = two_domains(tmp_path / 'cache')
  built = build.build(sources, tmp_path / 'a', tmp_path / 'cache')
  again = build.build(sources, tmp_path / 'b', tmp_path / 'cache')
  assert list(built.files) == ['english', 'code']
  for domain, path in built.files.items():
    entry = built.manifest['domains'][domain]
    texts = list(read_texts(path, 'text'))
    assert path.read_bytes() == again.files[domain].read_bytes()
    assert entry['sha256'] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (entry['documents'], entry['bytes']) == (
      len(texts),
      sum(len(text.encode()) for text in texts),
    )
    assert len(set(texts)) == len(texts)
  novel, code, made = (
    told for entry in built.manifest['domains'].values() for told in entry['sources']
  )
  assert (novel['documents'], novel['dropped']) == (400, {'duplicate': 1})
  assert code['bytes'] <= 40_000 and code['dropped']['unreadable'] == 1
  assert code['documents'] + code['dropped']['capped'] == 150
  assert made['documents'] == 30
  assert [entry['name'] for entry in built.manifest['packages']] == ['novel', 'code']
  assert all(
    entry['pinned'] and entry['licence'] == 'public domain' for entry in built.manifest['packages']
  )


def test_goes_on_where_it_was_and_leaves_finished_domains_alone(tmp_path):
  sources = two_domains(tmp_path / 'cache')
  failing = (*sources[:2], Source('code', 'made', None, lambda: 1 / 0))
  with pytest.raises(ZeroDivisionError):
    build.build(failing, tmp_path / 'out', tmp_path / 'cache')
  assert sorted(os.listdir(tmp_path / 'out')) == ['english.jsonl', 'manifest.json']
  finished = (tmp_path / 'out' / 'english.jsonl').stat().st_mtime_ns
  build.build(sources, tmp_path / 'out', tmp_path / 'cache')
  assert sorted(os.listdir(tmp_path / 'out')) == ['code.jsonl', 'english.jsonl', 'manifest.json']
  assert (tmp_path / 'out' / 'english.jsonl').stat().st_mtime_ns == finished
  (tmp_path / 'out' / 'english.jsonl').write_text('cut short')
  built = build.build(sources, tmp_path / 'out', tmp_path / 'cache')
  assert len(list(read_texts(built.files['english'], 'text'))) == 400


def test_another_corpus_is_not_overwritten(tmp_path):
  sources = two_domains(tmp_path / 'cache')
  build.build(sources, tmp_path / 'out', tmp_path / 'cache')
  with pytest.raises(
    UserError, match='out holds a corpus of other archives or another version of the recipe'
  ):
    build.build(sources[:2], tmp_path / 'out', tmp_path / 'cache')


def test_source_without_text(tmp_path):
  package = helpers.cached(tmp_path, 'npm', files('novel', 3))
  with pytest.raises(UserError, match=r'^novel: its archive has no text in other/\*'):
    build.build(
      [Source('english', 'novel', package, plain, ('other/*',))], tmp_path / 'out', tmp_path
    )


def test_file_that_is_not_what_its_reader_reads(tmp_path):
  package = helpers.cached(tmp_path, 'npm', files('novel', 3))
  read = lambda raw: json.loads(raw)
  with pytest.raises(UserError, match=r'novel-1\.0\.tgz: novel/000\.txt: Expecting value') as error:
    build.build([Source('english', 'novel', package, read, ('*',))], tmp_path / 'out', tmp_path)
  assert '\n' not in str(error.value)


def test_report(tmp_path):
  built = build.build(two_domains(tmp_path / 'cache'), tmp_path / 'out', tmp_path / 'cache')
  measured = report.measure(built, vocab_size=320)
  for domain, numbers in measured.items():
    size = built.manifest['domains'][domain]['bytes']
    assert 0 < numbers['held_out_bytes'] < size / 5
    assert size / 8 < numbers['tokens'] < size
    assert 0.1 < numbers['xz_bits_per_byte'] < 6
  rows = report.table(built.manifest, measured).splitlines()
  assert [row.split(' | ')[0] for row in rows[2:]] == ['| english', '| code', '| all']
  assert sorted(os.listdir(tmp_path / 'out')) == ['code.jsonl', 'english.jsonl', 'manifest.json']


def test_the_declared_sources():
  assert list(dict.fromkeys(source.domain for source in SOURCES)) == [
    'english',
    'chinese',
    'code',
    'mathematics',
  ]
  assert len({source.name for source in SOURCES}) == len(SOURCES)
  for package in {source.package for source in SOURCES if source.package}:
    assert len(bytes.fromhex(package.sha256)) == 32 and package.licence


def test_the_command_without_a_directory():
  done = subprocess.run(
    [sys.executable, '-m', 'experiments.corpora.debian_mix'],
    capture_output=True,
    text=True,
    check=False,
  )
  assert (done.returncode, done.stdout, done.stderr) == (2, '', 'error: --out=DIR is required\n')
