"""Conversations of varied length and script, and a corpus of them."""

import json
import random

from tests.moe.data.helpers import WORDS, small_config

_EXTRA = ['你好', '专家', '<eos>', '</s>', 'User:', 'Assistant:', '\n\n', 'é', '▁', '😀', '  ']


def words(dice, most):
  return ' '.join(dice.choice(WORDS + _EXTRA) for _ in range(dice.randint(1, most))) + '.'


def conversation(seed, turns=None, most=12):
  """Returns messages. Each reply names its question, so that all replies differ."""
  dice, messages = random.Random(f'chat {seed}'), []
  if dice.random() < 0.3:
    messages.append(('system', f'rules {words(dice, 4)}'))
  for turn in range(turns or dice.randint(1, 3)):
    messages.append(('user', f'{seed}.{turn} {words(dice, most)}'))
    messages.append(('assistant', f'{words(dice, most)} [{seed}.{turn}]'))
  return messages


def as_row(messages):
  return {'messages': [{'role': role, 'content': content} for role, content in messages]}


def write(path, rows):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows))
  return path


def write_chats(folder):
  """Writes two sources, the second of prompt/response pairs; returns `data.sources`."""
  write(folder / 'a.jsonl', [as_row(conversation(f'a{n}')) for n in range(60)])
  pairs = [conversation(f'b{n}', turns=1)[-2:] for n in range(40)]
  write(
    folder / 'b.jsonl', [{'prompt': asked, 'response': said} for (_, asked), (_, said) in pairs]
  )
  return f'a@3={folder}/a.jsonl;b={folder}/b.jsonl'


def chat_config(**data):
  return small_config(**{'format': 'chat', 'seq_len': 64, **data})
