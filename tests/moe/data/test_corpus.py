import bz2
import functools
import gzip
import json
import lzma
import os

import pyarrow as pa
import pyarrow.parquet
import pytest
import zstandard

from moe.data import corpus, matching
from moe.errors import UserError
from tests.moe.data.helpers import small_config, text, write_corpus

# mtime=0 leaves out the time: all test workers must give their cases the same names.
zipped = functools.partial(gzip.compress, mtime=0)

TEXTS = [text(i, 40) + ' 中文\t\r\n é' for i in range(30)]


def read(spec, **data):
  return list(corpus.documents(small_config(sources=spec, **data).data))


def test_every_format_reads_the_same_texts(tmp_path):
  rows = ''.join(json.dumps({'id': i, 'text': written}) + '\n\n' for i, written in enumerate(TEXTS))
  (tmp_path / 'x.jsonl').write_text(rows)
  (tmp_path / 'y.jsonl.gz').write_bytes(zipped(rows.encode()))
  pa.parquet.write_table(
    pa.table({'id': range(30), 'text': TEXTS}), tmp_path / 'x.parquet', row_group_size=7
  )
  for i, written in enumerate(TEXTS):
    (tmp_path / 'plain').mkdir(exist_ok=True)
    (tmp_path / 'plain' / f'{i:02d}.md').write_bytes(written.encode())
    (tmp_path / 'zipped' / 'deep').mkdir(parents=True, exist_ok=True)
    (tmp_path / 'zipped' / 'deep' / f'{i:02d}.txt.gz').write_bytes(zipped(written.encode()))
  wanted = read(f'd={tmp_path}/x.jsonl')
  assert [document.text for document in wanted] == TEXTS
  for pattern in ('y.jsonl.gz', 'x.parquet', 'plain/*', 'zipped/**/*.gz'):
    assert read(f'd={tmp_path}/{pattern}') == wanted


def test_sources_and_weights(tmp_path):
  write_corpus(tmp_path, 'a', 2)
  write_corpus(tmp_path, 'b', 2)
  spec = f'code2@0.5={tmp_path}/a-000.txt; b={tmp_path}/b*;code2@0.5={tmp_path}/a*;builtin'
  sources = corpus.parse_sources(spec)
  assert [source.domain for source in sources] == ['code2', 'b', 'code', 'docs', 'arithmetic']
  assert [len(source.files) for source in sources] == [2, 2, 0, 0, 0]
  assert corpus.weights(spec) == {
    'code2': 0.5,
    'b': 1.0,
    'code': 0.5,
    'docs': 0.35,
    'arithmetic': 0.15,
  }


def test_held_out_is_whole_documents_by_text_and_so_are_copies(tmp_path):
  (tmp_path / 'x.jsonl').write_text(
    ''.join(json.dumps({'text': written}) + '\n' for written in TEXTS * 2)
  )
  documents = read(f'd={tmp_path}/x.jsonl', holdout=0.3)
  held_out = {document.text for document in documents if document.held_out}
  training = {document.text for document in documents if not document.held_out}
  assert len(held_out) + len(training) == 30
  assert 3 <= len(held_out) <= 15


def test_validation_sources(tmp_path):
  write_corpus(tmp_path, 'a', 4)
  write_corpus(tmp_path, 'v', 3)
  documents = read(f'd={tmp_path}/a*', validation_sources=f'd={tmp_path}/v*', holdout=0.5)
  assert [document.held_out for document in documents] == [False] * 4 + [True] * 3


@pytest.mark.parametrize(
  'spec, message',
  [
    ('', 'data.sources is empty'),
    (' ; ', 'data.sources is empty'),
    ('novel', "'novel' is neither 'builtin' nor DOMAIN"),
    ('no vel=x', "'no vel=x' is neither"),
    ('d@0=x', "must be a positive number, not '0'"),
    ('d@-1=x', 'positive number'),
    ('d@inf=x', 'positive number'),
    ('d@much=x', 'positive number'),
    ('d@=x', 'positive number'),
    ('d@1={}/*.txt;d@2={}/*.txt', "'d' has two weights, 1 and 2"),
    ('builtin;code@0.5={}/*.txt', "'code' stands for text of `builtin`"),
    ('d={}/nothing/*.txt', "no file matches '.*nothing/"),
  ],
)
def test_bad_specs(tmp_path, spec, message):
  write_corpus(tmp_path, 'a', 2)
  with pytest.raises(UserError, match=message) as error:
    corpus.parse_sources(spec.replace('{}', str(tmp_path)))
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  'name, contents, message',
  [
    ('x.txt', b'fine\nline two \xff', r'x\.txt:2: not UTF-8 \(byte 14\)'),
    ('x.txt.gz', b'not gzip', r'x\.txt\.gz: damaged gzip'),
    ('x.txt.gz', zipped(b'cut short' * 99)[:-12], r'x\.txt\.gz: damaged gzip'),
    ('x.jsonl', b'{"text": "a"}\n{"text": ', r'x\.jsonl:2: not JSON'),
    (
      'x.jsonl',
      b'{"text": "a"}\n\n{"body": "b"}',
      r"x\.jsonl:3: no field 'text' \(data\.text_key\).*'body'",
    ),
    ('x.jsonl', b'{"text": null}', r"x\.jsonl:1: 'text' must be a string, not null"),
    ('x.jsonl', b'{"text": 5}', 'must be a string, not int'),
    ('x.jsonl', b'["text"]', r'x\.jsonl:1: a JSON object is needed, not list'),
    ('x.jsonl', b'{"text": "a"}\n\xff\xfe', r'x\.jsonl:2: not UTF-8'),
    ('x.jsonl', b'{"text": "\\ud800"}', r'x\.jsonl:1: .*lone surrogate'),
    ('x.parquet', b'PAR1 not really', r'x\.parquet: not readable as Parquet'),
  ],
)
def test_bad_files(tmp_path, name, contents, message):
  (tmp_path / name).write_bytes(contents)
  with pytest.raises(UserError, match=message) as error:
    read(f'd={tmp_path}/{name}')
  assert '\n' not in str(error.value)


ROWS = ''.join(json.dumps({'text': written}) + '\n' for written in TEXTS).encode()
MARK = b'\xef\xbb\xbf'
ZSTD = zstandard.ZstdCompressor()
CSV = 'id,text\r\n' + ''.join(
  f'{i},"{written}"\r\n' for i, written in enumerate(text.replace('"', '""') for text in TEXTS)
)


@pytest.mark.parametrize(
  ('name', 'contents'),
  [
    ('x.json', ROWS),
    ('x.json', MARK + ROWS),
    ('x.json', json.dumps([{'text': written} for written in TEXTS], indent=1).encode()),
    ('x.json', MARK + json.dumps([{'text': written} for written in TEXTS]).encode()),
    ('x.json', '\n'.join(json.dumps({'text': t}, indent=2) for t in TEXTS).encode()),
    ('x.ndjson', ROWS.replace(b'\n', b'\r\n')),
    ('c4-train.00000-of-01024.json.gz', zipped(ROWS)),
    ('x.jsonl.zst', ZSTD.compress(ROWS[:500]) + ZSTD.compress(ROWS[500:])),
    ('x.JSON.ZST', ZSTD.compress(ROWS)),
    ('x.jsonl.xz', lzma.compress(ROWS)),
    ('x.jsonl.bz2', bz2.compress(ROWS)),
    ('x.jsonl', zipped(ROWS)),
    ('part-00000', ROWS),
    ('part-00000', MARK + ROWS),
    ('part-00000.gz', zipped(ROWS)),
    ('x.csv', CSV.encode()),
    ('x.csv.gz', zipped(MARK + CSV.encode())),
    ('x.tsv', CSV.replace('id,', 'id\t').replace(',"', '\t"').encode()),
    ('x.jsonl', ''.join(json.dumps({'text': '\ufeff' + t}) + '\n' for t in TEXTS).encode()),
  ],
)
def test_formats_of_the_field(tmp_path, name, contents):
  (tmp_path / name).write_bytes(contents)
  assert [document.text for document in read(f'd={tmp_path}/{name}')] == TEXTS


@pytest.mark.parametrize('pack', [bytes, gzip.compress, ZSTD.compress, lzma.compress, bz2.compress])
def test_a_plain_file_without_its_byte_order_mark(tmp_path, pack):
  (tmp_path / 'x.txt').write_bytes(pack(MARK + TEXTS[0].encode()))
  assert ''.join(document.text for document in read(f'd={tmp_path}/x.txt')) == TEXTS[0]


@pytest.mark.parametrize(
  ('name', 'contents', 'message'),
  [
    ('x.jsonl.zst', ZSTD.compress(ROWS)[:-5], r'x\.jsonl\.zst: damaged zstd file'),
    ('x.txt.xz', lzma.compress(ROWS)[:-20], r'x\.txt\.xz: damaged xz'),
    ('x.txt.bz2', bz2.compress(ROWS)[:-20], r'x\.txt\.bz2: damaged bzip2'),
    ('x.json', b'[{"text": "a"},', r'x\.json:1: not JSON: the file ends within its array'),
    ('x.json', b'[{"text": "a"},\n {"text": ]', r'x\.json:2: not JSON'),
    ('x.json', b'{"a":\n 1}', r"x\.json:1: no field 'text' .* the row has 'a'"),
    ('x.txt', b'PK\x03\x04', r'x\.txt is a ZIP archive'),
    ('x.pdf', b'%PDF-1.7', r'x\.pdf is a PDF document'),
    ('x.txt', 'a'.encode('utf-16'), r'x\.txt is text in UTF-16'),
    ('x.tar.gz', zipped(bytes(257) + b'ustar' + bytes(250)), r'x\.tar\.gz is a tar archive'),
    ('x.parquet.gz', zipped(b'PAR1'), r'x\.parquet\.gz is a Parquet file inside gzip'),
  ],
)
def test_what_cannot_be_read_is_called_by_what_it_is(tmp_path, name, contents, message):
  (tmp_path / name).write_bytes(contents)
  with pytest.raises(UserError, match=message) as error:
    read(f'd={tmp_path}/{name}')
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  ('name', 'contents', 'place'),
  [
    ('x.txt', b'0' * 10_001, 'x.txt:1'),
    ('x.txt.gz', zipped(b'0' * 10_001), 'x.txt.gz:1'),
    ('x.txt.gz', zipped(b'0' * 10**7), 'x.txt.gz'),
    ('x.jsonl', b'{"text": "a"}\n{"text": "' + b'0' * 10**6 + b'"}\n', 'x.jsonl:2'),
    ('x.json', b'[{"text": "a"},\n{"text": "' + b'0' * 10**6 + b'"}]', 'x.json:2'),
    ('x.csv', b'text\na\n' + b'0' * 10**6, 'x.csv:3'),
    ('x.jsonl.zst', ZSTD.compress(b'\n' * 10**7), 'x.jsonl.zst: unpacks to more than'),
  ],
)
def test_bombs_are_bounded_by_a_key(tmp_path, name, contents, place):
  (tmp_path / name).write_bytes(contents)
  with pytest.raises(UserError, match=f'{place}.*data.max_document_mb'):
    read(f'd={tmp_path}/{name}', max_document_mb=0.01)


@pytest.mark.parametrize('texts', [['0' * 10**6], ['0' * 10**6, 'a'], ['a', '0' * 10_001, 'b']])
def test_parquet_bombs(tmp_path, texts):
  pa.parquet.write_table(pa.table({'text': texts}), tmp_path / 'x.parquet', compression='zstd')
  with pytest.raises(UserError, match=r'x\.parquet row.*data\.max_document_mb'):
    read(f'd={tmp_path}/x.parquet', max_document_mb=0.01)


def test_bad_rows_are_skipped_and_counted(tmp_path):
  rows = b'{"text": "a"}\nno\n{"body": 1}\n{"text": 2}\n\xff\n{"text": "' + b'0' * 2000 + b'"}\n'
  (tmp_path / 'x.jsonl').write_bytes(rows + b'{"text": "b"}\n')
  (tmp_path / 'y.txt').write_bytes(b'\xff')
  bad = []
  data = small_config(sources=f'd={tmp_path}/*', bad_rows='skip', max_document_mb=0.001).data
  assert [document.text for document in corpus.read(data, bad)] == ['a', 'b']
  assert [str(error).partition(': ')[0].rpartition('/')[2] for error in bad] == [
    *(f'x.jsonl:{line}' for line in range(2, 7)),
    'y.txt:1',
  ]


@pytest.mark.parametrize(
  ('separator', 'written'),
  [
    ('<|end|>', 'a\n<|end|>b<|end|>\n<|end|>c'),
    ('\\n\\n', 'a\n\n\nb\n\nc'),
    ('%\\n', 'a%\r\nb%\nc'),
  ],
)
def test_separator(tmp_path, separator, written):
  (tmp_path / 'x.txt').write_bytes(written.encode())
  found = [
    document.text.strip()
    for document in read(f'd={tmp_path}/x.txt', separator=separator, holdout=0.0)
  ]
  assert found == ['a', 'b', 'c']


def test_separators_between_readings(tmp_path, monkeypatch):
  parts = [text(i, 30) for i in range(20)]
  (tmp_path / 'x.txt').write_bytes('\r\n--\r\n'.join(parts).encode())
  for chunk in (1, 7, 64, 1000):
    for name in ('plain', 'json_values'):
      monkeypatch.setattr(f'moe.data.readers.{name}.CHUNK', chunk)
    found = read(f'd={tmp_path}/x.txt', separator='\\n--\\n', holdout=0.0)
    assert [document.text for document in found] == parts


def test_text_key_of_a_source(tmp_path):
  (tmp_path / 'a.jsonl').write_text('{"text": "a"}\n')
  (tmp_path / 'b.jsonl').write_text('{"content": "b", "text": 1}\n')
  assert [d.text for d in read(f'a={tmp_path}/a.jsonl;b@2:content={tmp_path}/b.jsonl')] == [
    'a',
    'b',
  ]


@pytest.mark.parametrize(
  ('pattern', 'wanted'),
  [
    ('{a,b}/x', ['a/x', 'b/x']),
    ('{a{1,2},b}{x,}', ['a1x', 'a1', 'a2x', 'a2', 'bx', 'b']),
    ('{08..11}', ['08', '09', '10', '11']),
    ('{9..11}', ['9', '10', '11']),
    ('{a}{}{,', ['{a}{}{,']),
    ('plain', ['plain']),
  ],
)
def test_braces_as_in_a_shell(pattern, wanted):
  assert matching.expand_braces(pattern) == wanted


def test_folders_home_and_names_that_look_like_patterns(tmp_path, monkeypatch):
  write_corpus(tmp_path / 'a [1]/deep', 'a', 3)
  write_corpus(tmp_path / 'b;c', 'b', 2)
  (tmp_path / 'a [1]/.hidden').write_text('no')
  monkeypatch.setenv('HOME', str(tmp_path))
  for pattern, count in (
    (f'{tmp_path}/a [1]', 3),
    ('~/a [1]/deep/a-000.txt', 1),
    ('~/{a [[]1],b\\;c}/**/*.txt', 5),
    ('~/**', 5),
    (f'{tmp_path}/**/deep/**/*.txt', 3),
  ):
    (source,) = corpus.parse_sources(f'd={pattern}')
    assert len(source.files) == count, pattern


def test_a_file_that_links_lead_to_counts_once_and_is_told(tmp_path):
  write_corpus(tmp_path / 'venv/lib', 'a', 10)
  (tmp_path / 'venv/lib64').symlink_to('lib')
  for name in ('here', 'there'):
    (tmp_path / f'venv/lib/{name}').symlink_to('..')
  (tmp_path / 'venv/again.txt').symlink_to('lib/a-000.txt')
  os.link(tmp_path / 'venv/lib/a-001.txt', tmp_path / 'venv/hard.txt')
  data = small_config(sources=f'd={tmp_path}/venv/**/*.txt').data
  (source,), _, notes = corpus.parse_and_tell(data)
  assert len(source.files) == 10
  assert len(notes) == 1 and 'links' in notes[0]


@pytest.mark.parametrize('link', [False, True])
def test_no_file_is_both_trained_on_and_held_out(tmp_path, link):
  write_corpus(tmp_path, 'a', 4)
  held_out = f'{tmp_path}/a-000.txt'
  if link:
    (tmp_path / 'val.txt').symlink_to('a-000.txt')
    held_out = f'{tmp_path}/val.txt'
  with pytest.raises(
    UserError, match=r'both have 1 files, such as .*cannot be trained on and held'
  ):
    read(f'd={tmp_path}/a*', validation_sources=f'd={held_out}')


@pytest.mark.parametrize('count', [1, 2, 5])
def test_of_few_documents_the_end_of_the_longest_is_held_out(tmp_path, count):
  texts = write_corpus(tmp_path, 'a', count, words=(200, 300))
  documents = read(f'a={tmp_path}/*.txt', holdout=0.001)
  (end,) = (document.text for document in documents if document.held_out)
  longest = max(texts, key=len)
  assert longest.endswith(end) and 0 < len(end) < 0.1 * sum(map(len, texts))
  training = [document.text for document in documents if not document.held_out]
  assert longest.removesuffix(end) in training
  assert ''.join(sorted(training + [end])) == ''.join(
    sorted([*(t for t in texts if t != longest), longest.removesuffix(end), end])
  )


def test_a_parquet_column_may_have_a_dot_in_its_name(tmp_path):
  pa.parquet.write_table(pa.table({'text': range(30), 'text.en': TEXTS}), tmp_path / 'x.parquet')
  found = read(f'd={tmp_path}/x.parquet', text_key='text.en')
  assert [document.text for document in found] == TEXTS


@pytest.mark.parametrize(
  'table, message',
  [
    ({'body': ['a']}, r"x\.parquet: no column 'text' \(data\.text_key\); the file has 'body'"),
    ({'text': ['a', None]}, r"x\.parquet row 2: 'text' must be a string, not null"),
    ({'text': [1, 2]}, r"x\.parquet row 1: 'text' must be a string, not int"),
  ],
)
def test_bad_parquet(tmp_path, table, message):
  pa.parquet.write_table(pa.table(table), tmp_path / 'x.parquet')
  with pytest.raises(UserError, match=message):
    read(f'd={tmp_path}/x.parquet')


@pytest.mark.parametrize(('name', 'between'), [('x.csv', ','), ('x.tsv', '\t')])
def test_a_table_without_the_column_is_no_text(tmp_path, name, between):
  (tmp_path / name).write_text(f'id{between}content\n' + f'1{between}some words\n' * 3)
  with pytest.raises(
    UserError, match=rf"{name}: no column 'text' .*; the file has 'id', 'content'"
  ):
    read(f'd={tmp_path}/{name}')
  found = ''.join(each.text for each in read(f'd:content={tmp_path}/{name}'))
  assert found.count('words') >= 1 and 'id' not in found
