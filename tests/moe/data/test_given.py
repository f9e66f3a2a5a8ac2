"""Text that is scored beside the held-out text, and how much of it the run was trained on."""

import json

import pytest

from moe.data import given
from moe.data.prepare import prepare
from moe.data.store import HELD_OUT, TRAIN
from moe.data.tokenizers import from_bytes, train_tokenizer
from moe.errors import UserError
from tests.moe.data.helpers import foreign_model, small_config, text, write_corpus


def open_given(sources, prepared, **data):
  return given.open_given(sources, small_config(**data).data, prepared.tokenizer)


def texts_of(prepared, split, domain):
  documents = prepared.documents(split, domain)
  return [prepared.tokenizer.decode(documents.document(n)) for n in range(len(documents))]


def test_every_document_is_whole_and_by_the_runs_tokenizer(prepared, tmp_path):
  texts = write_corpus(tmp_path, 'x', 7, seed=5)
  rows = [{'words': 'é one'}, {'words': 'two'}]
  (tmp_path / 'y.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  found = open_given(f'x@9={tmp_path}/x-*.txt;total:words={tmp_path}/y.jsonl', prepared)
  assert found.held_out_domains == ('x', 'total') and not found.domains
  assert texts_of(found, HELD_OUT, 'x') == texts
  assert found.held_out_text('x') == ''.join(texts).encode()
  assert found.held_out_text('total').decode() == 'é onetwo'
  assert found.totals(HELD_OUT, 'total')['bytes'] == 9


def test_the_runs_separator_cuts_documents(prepared, tmp_path):
  (tmp_path / 'x.txt').write_text('one\n--\ntwo')
  found = open_given(f'x={tmp_path}/x.txt', prepared, separator='\\n--\\n')
  assert texts_of(found, HELD_OUT, 'x') == ['one', 'two']


def test_documents_that_were_trained_on_are_counted(prepared, tmp_path):
  long = 'long ' * 9000  # several records
  trained = [*texts_of(prepared, TRAIN, 'a')[:3], long]
  held_out = texts_of(prepared, HELD_OUT, 'a')[:2]
  # It has the size of a training document, but another text.
  like = trained[0][::-1]
  rows = [*trained, *held_out, like, trained[0], 'new ' + trained[1]]
  (tmp_path / 'x.jsonl').write_text('\n'.join(json.dumps({'text': row}) for row in rows))
  (tmp_path / 'y.txt').write_text(text('new', 30))
  assert long in texts_of(prepared, TRAIN, 'b') or long in texts_of(prepared, HELD_OUT, 'b')
  trained_on = 5 if long in texts_of(prepared, TRAIN, 'b') else 4
  found = open_given(f'x={tmp_path}/x.jsonl;y={tmp_path}/y.txt', prepared)
  counts, notes = given.trained_on(found, prepared.directory)
  assert counts == {'x': trained_on, 'y': 0}
  assert notes == [
    f"warning: the run was trained on {trained_on} of 9 given documents of domain 'x'"
  ]


def test_a_file_whose_end_alone_was_held_out_was_trained_on(tmp_path):
  (tmp_path / 'book.txt').write_text(text('book', 900))
  spec = f'book={tmp_path}/book.txt'
  prepared = prepare(small_config(sources=spec, model_vocab_size=330), tmp_path / 'data')
  found = open_given(spec, prepared)
  assert given.trained_on(found, tmp_path / 'data')[0] == {'book': 1}
  (tmp_path / 'end.txt').write_bytes(prepared.held_out_text('book'))
  found = open_given(f'book={tmp_path}/end.txt', prepared)
  assert given.trained_on(found, tmp_path / 'data') == ({'book': 0}, [])


def test_without_the_runs_data_it_is_not_known(prepared, tmp_path):
  (tmp_path / 'x.txt').write_text('some text')
  found = open_given(f'x={tmp_path}/x.txt', prepared)
  other = given.open_given(
    f'x={tmp_path}/x.txt', small_config().data, train_tokenizer(['some text'], 270)
  )
  for data, directory, why in (
    (found, tmp_path / 'gone', f'there is no prepared data in {tmp_path}/gone'),
    (found, tmp_path, f'{tmp_path} is in use and holds no prepared data'),
    (found, 'gs://bucket/data', 'the training text in gs://bucket/data is not read from here'),
    (other, prepared.directory, f'the prepared data in {prepared.directory} is of another tok'),
  ):
    counts, (note,) = given.trained_on(data, directory)
    assert counts is None
    assert note.startswith(f'whether the run was trained on this text is not known: {why}')


def test_what_the_tokens_do_not_say_is_counted_and_told(tmp_path, capfd):
  rows = ['alpha beta', ' \n', '中文 alpha']
  (tmp_path / 'x.jsonl').write_text('\n'.join(json.dumps({'text': row}) for row in rows))
  sources, tokenizer = f'x={tmp_path}/x.jsonl', from_bytes(foreign_model())
  found = given.open_given(sources, small_config().data, tokenizer)
  totals = found.totals(HELD_OUT, 'x')
  # The blank row has no token, but its two bytes count.
  assert totals['documents'] == 3 and totals['bytes'] == sum(len(row.encode()) for row in rows)
  assert totals['lost'] == {'documents': 2, 'bytes': 2 + 6}
  assert 'lossy: it does not give back 2 of 3 given documents' in capfd.readouterr().err


def test_rows_that_are_no_text_are_skipped_where_the_run_did(prepared, tmp_path, capfd):
  (tmp_path / 'x.jsonl').write_text('{"text": "one"}\nno row\n')
  found = open_given(f'x={tmp_path}/x.jsonl', prepared, bad_rows='skip')
  assert texts_of(found, HELD_OUT, 'x') == ['one']
  assert 'data.bad_rows=skip: 1 rows are left out' in capfd.readouterr().err


@pytest.mark.parametrize(
  'sources, words',
  [
    ('', '--sources is empty'),
    ('x=', "--sources: 'x=' is neither"),
    ('x={folder}/none-*', "--sources: no file matches '{folder}/none-*' (domain 'x')"),
    ('x={folder}/latin.txt', '{folder}/latin.txt:2: not UTF-8'),
    ('x={folder}/blank.txt', "--sources: domain 'x' is empty: its files hold no text"),
    ('x:words={folder}/rows.jsonl', "rows.jsonl:1: no field 'words'"),
  ],
)
def test_bad_input_is_named(prepared, tmp_path, sources, words):
  (tmp_path / 'latin.txt').write_bytes('one\ntwo é'.encode('latin-1'))
  (tmp_path / 'blank.txt').write_text('')
  (tmp_path / 'rows.jsonl').write_text('{"text": "one"}\n')
  with pytest.raises(UserError) as raised:
    open_given(sources.format(folder=tmp_path), prepared)
  assert words.format(folder=tmp_path) in str(raised.value)
