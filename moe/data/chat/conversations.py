"""Rows of JSON → conversations. Every fault is a BadRow that names file and line.

{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}, …]}
{"prompt": "…", "response": "…"}
"""

import json
from collections.abc import Sequence
from typing import NamedTuple

from moe.data.readers import BadRow

ROLES = ('system', 'user', 'assistant')
_MESSAGES, _PAIR = 'messages', ('prompt', 'response')
_DEFAULT = 'text'  # the default of data.text_key: it stands for the two forms above


class Message(NamedTuple):
  """A turn."""

  role: str  # one of ROLES
  content: str


def text_of(row: dict, text_key: str, where: str) -> str:
  """A conversation as one line that `from_text` reads back. data.holdout hashes this line, and
  copies are recognised by it.

  `text_key`: the field with the messages, or PROMPT+RESPONSE, the two fields of a pair.
  `where`: FILE:LINE.
  """
  messages = _messages(row, text_key, where)
  check(messages, where)
  return json.dumps(messages, ensure_ascii=False)


def from_text(text: str) -> list[Message]:
  """The messages of a conversation that `text_of` has written."""
  return [Message(*each) for each in json.loads(text)]


def said(text: str) -> str:
  """What all turns of a conversation say, joined by newlines: a tokenizer is trained on it."""
  return '\n'.join(message.content for message in from_text(text))


def check(messages: Sequence[Message], where: str) -> None:
  """Raises BadRow unless a user's message comes first, or second after a system message, no turn is
  empty, and the assistant has one.
  """
  if not messages:
    raise BadRow(f'{where}: the conversation has no turn')
  for number, (role, content) in enumerate(messages, start=1):
    if role not in ROLES:
      raise BadRow(f'{where}: turn {number} has the role {role!r}: {", ".join(ROLES)} are known')
    if role == 'system' and number > 1:
      raise BadRow(f'{where}: turn {number} is a system message: it can only come first')
    if not content.strip():
      raise BadRow(f'{where}: turn {number}, of {role}, is empty')
  first = next((message.role for message in messages if message.role != 'system'), 'system')
  if first == 'assistant':
    raise BadRow(f'{where}: the conversation starts with the assistant: a user must ask first')
  if not any(message.role == 'assistant' for message in messages):
    raise BadRow(f'{where}: nothing to learn: the conversation has no turn of the assistant')


def _messages(row, text_key, where):
  first, plus, second = text_key.partition('+')
  pair = (first, second) if plus else _PAIR if text_key == _DEFAULT else None
  field = _MESSAGES if text_key == _DEFAULT else text_key
  if field in row:
    return _turns(row[field], field, where)
  if pair and all(name in row for name in pair):
    asked, answered = (_string(row[name], repr(name), where) for name in pair)
    return [Message('user', asked), Message('assistant', answered)]
  needed = f'no field {field!r}'
  if pair:
    both = ' and '.join(map(repr, pair))
    needed = f'neither {field!r} nor {both}' if text_key == _DEFAULT else f'not both {both}'
  has = ', '.join(map(repr, list(row)[:8])) or 'none'
  raise BadRow(f'{where}: {needed} (data.text_key); the row has {has}')


def _turns(found, field, where):
  if not isinstance(found, list):
    raise BadRow(f'{where}: {field!r} must be a list of turns, not {type(found).__name__}')
  turns = []
  for number, turn in enumerate(found, start=1):
    if not isinstance(turn, dict) or not {'role', 'content'} <= turn.keys():
      raise BadRow(f"{where}: turn {number} must have 'role' and 'content', not {_shown(turn)}")
    named = f"'content' of turn {number}"
    turns.append(Message(str(turn['role']), _string(turn['content'], named, where)))
  return turns


def _string(value, named, where):
  if not isinstance(value, str):
    raise BadRow(f'{where}: {named} must be a string, not {_shown(value)}')
  return value


def _shown(value):
  shown = json.dumps(value)
  return shown if len(shown) <= 60 else f'{shown[:60]}…'
