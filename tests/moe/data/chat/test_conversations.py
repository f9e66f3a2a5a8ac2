"""Rows of JSON that are conversations; for rows that are not, errors give file and line."""

import json

import pytest

from moe.data import corpus
from moe.data.chat import conversations
from moe.data.prepare import prepare
from moe.data.readers import BadRow, Rules, read_texts
from moe.errors import UserError
from tests.moe.data.chat.helpers import as_row, chat_config, conversation, write, write_chats

RULES = Rules(text_of=conversations.text_of)
USER, ASSISTANT = {'role': 'user', 'content': 'a'}, {'role': 'assistant', 'content': 'b'}
SYSTEM = {'role': 'system', 'content': 's'}


def read(path, text_key='text', rules=RULES):
  return [conversations.from_text(text) for text in read_texts(path, text_key, rules)]


def test_messages_and_pairs(tmp_path):
  chats = [conversation(seed) for seed in range(5)]
  rows = [as_row(each) for each in chats] + [{'prompt': 'é "x"', 'response': '\n', 'id': 3}]
  rows[-1]['response'] = 'a\u2028b'
  path = write(tmp_path / 'x.jsonl', rows)
  wanted = [*chats, [('user', 'é "x"'), ('assistant', 'a\u2028b')]]
  assert read(path) == wanted
  (tmp_path / 'x.json').write_text(json.dumps(rows, indent=1))
  assert read(tmp_path / 'x.json') == wanted
  # Where the name does not tell the format, the contents do.
  (tmp_path / 'x').write_bytes(path.read_bytes())
  assert read(tmp_path / 'x') == wanted


def test_fields_of_ones_own(tmp_path):
  path = write(tmp_path / 'x.jsonl', [{'turns': [USER, ASSISTANT]}])
  assert read(path, 'turns') == [[('user', 'a'), ('assistant', 'b')]]
  path = write(tmp_path / 'y.jsonl', [{'q': 'a', 'r': 'b'}])
  assert read(path, 'q+r') == [[('user', 'a'), ('assistant', 'b')]]


@pytest.mark.parametrize(
  'row, words',
  [
    (
      {'messages': [ASSISTANT, USER, ASSISTANT]},
      'starts with the assistant: a user must ask first',
    ),
    ({'messages': [SYSTEM, ASSISTANT]}, 'starts with the assistant'),
    (
      {'messages': [USER, {'role': 'assistant', 'content': ' \n'}]},
      'turn 2, of assistant, is empty',
    ),
    ({'messages': [{'role': 'user', 'content': ''}, ASSISTANT]}, 'turn 1, of user, is empty'),
    ({'prompt': 'a', 'response': ''}, 'turn 2, of assistant, is empty'),
    (
      {'messages': [USER, {'role': 'tool', 'content': 'x'}]},
      "turn 2 has the role 'tool': system, user, assistant are known",
    ),
    ({'messages': [USER, SYSTEM, ASSISTANT]}, 'turn 2 is a system message: it can only come first'),
    (
      {'messages': [SYSTEM, USER]},
      'nothing to learn: the conversation has no turn of the assistant',
    ),
    ({'messages': []}, 'the conversation has no turn'),
    ({'messages': 'a'}, "'messages' must be a list of turns, not str"),
    ({'messages': [USER, 'b']}, "turn 2 must have 'role' and 'content', not \"b\""),
    ({'messages': [USER, {'role': 'assistant'}]}, "turn 2 must have 'role' and 'content'"),
    ({'messages': [USER, {**ASSISTANT, 'content': None}]}, "'content' of turn 2 must be a string"),
    ({'prompt': 'a', 'response': 3}, "'response' must be a string, not 3"),
    (
      {'prompt': 'a', 'text': 'b'},
      "neither 'messages' nor 'prompt' and 'response' (data.text_key); the row has 'prompt', 't",
    ),
    ([1], 'a JSON object is needed, not list'),
  ],
)
def test_a_bad_row_is_named_and_can_be_skipped(tmp_path, row, words):
  good = {'prompt': 'a', 'response': 'b'}
  path = write(tmp_path / 'x.jsonl', [good, row, good])
  with pytest.raises(BadRow) as error:
    read(path)
  assert str(error.value).startswith(f'{path}:2: ') and words in str(error.value)
  assert '\n' not in str(error.value)
  bad = []
  assert len(read(path, rules=RULES._replace(on_bad=bad.append))) == 2
  assert list(map(str, bad)) == [str(error.value)]


def test_missing_fields_of_ones_own(tmp_path):
  path = write(tmp_path / 'x.jsonl', [{'q': 'a'}])
  with pytest.raises(BadRow, match=r"x.jsonl:1: not both 'q' and 'r' \(data.text_key\); .* 'q'"):
    read(path, 'q+r')
  with pytest.raises(BadRow, match=r"x.jsonl:1: no field 'turns' \(data.text_key\)"):
    read(path, 'turns')


def test_only_json_is_read(tmp_path):
  (tmp_path / 'x.txt').write_text('a text')
  with pytest.raises(UserError, match=r'x.txt is no JSON: data.format=chat reads'):
    read(tmp_path / 'x.txt')


def test_sources_that_are_no_conversations(tmp_path):
  with pytest.raises(
    UserError, match=r"data\.sources: 'builtin' is text, and data\.format=chat needs"
  ):
    corpus.parse_and_tell(chat_config(sources='builtin').data)
  sources = write_chats(tmp_path)
  with pytest.raises(UserError, match=r"data\.validation_sources: 'builtin' is text"):
    corpus.parse_and_tell(chat_config(sources=sources, validation_sources='builtin').data)


def test_whole_conversations_are_held_out_with_their_copies(tmp_path):
  rows = [as_row(conversation(seed)) for seed in range(50)]
  sources = f'x={write(tmp_path / "x.jsonl", rows + rows[::-1])}'
  held_out = {}
  for document in corpus.documents(chat_config(sources=sources).data):
    assert held_out.setdefault(document.text, document.held_out) == document.held_out
  assert len(held_out) == 50 and 0 < sum(held_out.values()) < 25
  # There are too few to hold one out, and none is cut.
  sources = f'x={write(tmp_path / "y.jsonl", rows[:1])}'
  with pytest.raises(UserError, match=r'domain .x.* (no held-out text|every document is held out)'):
    prepare(chat_config(sources=sources, vocab_size=300), tmp_path / 'data')
