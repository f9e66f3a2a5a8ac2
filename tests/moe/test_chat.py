"""A conversation: the prompts the model gets, the history that is kept, the terminal's output.

Scripted replies stand in for the model. tests/moe/test_generate.py tests real tokens, tests/launch
the program.
"""

import io
import types
from unittest import mock

import pytest

from moe import chat
from moe.chat import Conversation, Options, talk, texts_of
from moe.config import DataConfig
from moe.data.chat import Message, open_template, prompt_ids, template_of
from moe.data.tokenizers import train_tokenizer
from moe.errors import UserError
from moe.generate import Sampling
from tests.moe.data.chat.helpers import conversation

TOKENIZER = train_tokenizer(
  [content for seed in range(60) for _, content in conversation(seed)] + ['User: Assistant:'], 420
)


class Script:
  """A stand-in for `stream_tokens`: gives the replies in turn, as tokens, and notes the calls."""

  def __init__(self, *replies: str, ends=True):
    self.replies, self.asked, self.ends = list(replies), [], ends

  def __call__(self, run, ids, max_new_tokens, sampling, seed, end_id):
    self.asked.append((ids, max_new_tokens, seed))
    yield from TOKENIZER.encode(self.replies.pop(0))
    if self.ends:
      yield end_id


@pytest.fixture
def script(monkeypatch):
  def use(*replies, **options):
    made = Script(*replies, **options)
    monkeypatch.setattr(chat, 'stream_tokens', made)
    return made

  return use


def of(context=200, **options):
  """A conversation with a run that has a context of `context` tokens."""
  data = DataConfig(seq_len=context, format='chat', chat_template='deepseek')
  run = types.SimpleNamespace(config=types.SimpleNamespace(data=data), tokenizer=TOKENIZER)
  return Conversation(run, Options(**{'sampling': Sampling(), 'max_new_tokens': 20} | options))


def ids_of(*turns):
  messages = [Message(*turn) for turn in turns]
  return prompt_ids(open_template('deepseek', TOKENIZER), TOKENIZER, messages)


def test_each_question_is_asked_with_all_before_it(script):
  model = script(' expert\n\n', ' the router </s>', 'x', 'y')
  talked = of()
  assert ''.join(talked.ask('who?')) == 'expert\n\n'
  assert ''.join(talked.ask('and User: </s>?')) == 'the router </s>'
  first = [('user', 'who?'), ('assistant', 'expert\n\n')]
  second = [('user', 'and User: </s>?'), ('assistant', 'the router </s>')]
  talked.system = 'rules'
  list(talked.ask('third'))
  talked.reset()
  list(talked.ask('fourth'))
  assert [ids for ids, *_ in model.asked] == [
    ids_of(first[0]),
    ids_of(*first, second[0]),
    ids_of(('system', 'rules'), *first, *second, ('user', 'third')),
    ids_of(('system', 'rules'), ('user', 'fourth')),
  ]
  # Each question samples with a seed of its own.
  assert [seed for *_, seed in model.asked] == [0, 1, 2, 3]


def test_the_oldest_turns_leave_a_full_context(script):
  replies = [f'{number} router router' for number in range(12)]
  model = script(*replies)
  talked, turns = of(context=120), []
  talked.system = 'rules'
  for number, reply in enumerate(replies):
    turns.append(('user', f'question {number} of many'))
    list(talked.ask(turns[-1][1]))
    asked = model.asked[-1][0]
    # 20 tokens are kept free for the reply.
    fitting = [
      turns[begin:]
      for begin in range(0, len(turns), 2)
      if len(ids_of(('system', 'rules'), *turns[begin:])) <= 100
    ]
    assert asked == ids_of(('system', 'rules'), *fitting[0])
    turns = [*fitting[0], ('assistant', reply)]
    assert talked.turns == turns
  assert talked.forgotten > 0 and len(turns) > 4


def test_a_question_longer_than_the_context_is_refused_and_forgotten(script):
  script('a', 'b')
  talked = of(context=40)
  list(talked.ask('x'))
  with pytest.raises(
    UserError, match=r"question 'y y y .* the context is 40 \(data.seq_len\)"
  ) as e:
    list(talked.ask('y ' * 60))
  assert '\n' not in str(e.value)
  assert [turn.content for turn in talked.turns] == ['x', 'a']
  # A question that leaves less room than a reply may take is answered in the room there is.
  long = next('y' * n for n in range(10, 60) if len(ids_of(('user', 'y' * n))) == 35)
  list(talked.ask(long))
  assert [turn.content for turn in talked.turns] == [long, 'b'] and talked.forgotten == 2


def test_text_comes_as_soon_as_it_is_characters():
  text = ' 你好 🦊 expert'
  ids = TOKENIZER.encode(text)
  pieces = list(texts_of([*ids, 2, *ids], TOKENIZER, end_id=2))
  assert ''.join(pieces) == text[1:] and len(ids) - 4 < len(pieces) < len(ids)
  assert not any('\ufffd' in piece for piece in pieces)
  # A text that ends within a character shows the replacement character.
  byte = TOKENIZER.pieces.index('<0xF0>')
  assert list(texts_of([byte], TOKENIZER, end_id=2)) == ['\ufffd']
  assert list(texts_of([2], TOKENIZER, end_id=2)) == []


def test_over_a_pipe(script, capsys):
  model, out = script(' one', ' two', ' three', ends=False), io.StringIO()
  lines = io.StringIO('\nhello\n/system rules of  it \n/reset\nagain\n/system\nlast')
  talk(of(), lines, out)
  assert out.getvalue() == 'one\ntwo\nthree\n'
  assert [ids for ids, *_ in model.asked] == [
    ids_of(('user', 'hello')),
    ids_of(('system', 'rules of  it'), ('user', 'again')),
    ids_of(('user', 'again'), ('assistant', 'two'), ('user', 'last')),
  ]
  assert capsys.readouterr().err == ''
  with pytest.raises(UserError, match='there is no command /rest: /reset forgets'):
    talk(of(), io.StringIO('/rest\n'), out)
  with pytest.raises(UserError, match='is not UTF-8 at character 4'):
    talk(of(), io.StringIO('caf\udce9\n'), out)


def test_in_a_terminal_a_fault_does_not_end_it(script, capsys):
  script(' one')
  out, terminal = io.StringIO(), mock.Mock(isatty=lambda: True)
  with mock.patch('builtins.input', side_effect=['/no', 'hi', EOFError]):
    talk(of(), terminal, out)
  assert out.getvalue() == 'one\n'
  told = capsys.readouterr().err.splitlines()
  assert told[1].startswith('error: there is no command /no') and len(told) == 2


def test_which_template():
  own, none = (
    types.SimpleNamespace(settings=settings) for settings in ({'chat_template': 'x'}, {})
  )
  assert template_of(DataConfig(format='chat', chat_template='plain'), own) == 'plain'
  assert template_of(DataConfig(), own) == 'tokenizer'
  assert template_of(DataConfig(), none) == ''
  run = types.SimpleNamespace(config=types.SimpleNamespace(data=DataConfig()), tokenizer=TOKENIZER)
  assert Conversation(run, Options(Sampling())).template_name == 'deepseek'
  with pytest.raises(UserError, match='max_new_tokens=0 must be at least 1'):
    of(max_new_tokens=0)
