import gzip
import json

import pyarrow as pa
import pyarrow.parquet
import pytest

from moe.data import corpus
from moe.errors import UserError
from tests.moe.data.helpers import small_config, text, write_corpus

TEXTS = [text(i, 40) + ' 中文\t\r\n é' for i in range(30)]


def read(spec, **data):
  return list(corpus.documents(small_config(sources=spec, **data).data))


def test_every_format_reads_the_same_texts(tmp_path):
  rows = ''.join(json.dumps({'id': i, 'text': written}) + '\n\n' for i, written in enumerate(TEXTS))
  (tmp_path / 'x.jsonl').write_text(rows)
  (tmp_path / 'y.jsonl.gz').write_bytes(gzip.compress(rows.encode()))
  pa.parquet.write_table(
    pa.table({'id': range(30), 'text': TEXTS}), tmp_path / 'x.parquet', row_group_size=7
  )
  for i, written in enumerate(TEXTS):
    (tmp_path / 'plain').mkdir(exist_ok=True)
    (tmp_path / 'plain' / f'{i:02d}.md').write_bytes(written.encode())
    (tmp_path / 'zipped' / 'deep').mkdir(parents=True, exist_ok=True)
    (tmp_path / 'zipped' / 'deep' / f'{i:02d}.txt.gz').write_bytes(gzip.compress(written.encode()))
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
    ('x.txt.gz', gzip.compress(b'cut short' * 99, mtime=0)[:-12], r'x\.txt\.gz: damaged gzip'),
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
