"""Conversations as a model reads them: text, and control pieces by their ids.

`deepseek` and `plain` are here; `tokenizer` is the Jinja template of tokenizer_config.json.
What a user writes is always text: the spelling of a control piece in it does not become one.
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

from moe.config import DataConfig
from moe.data.chat.base import Part, Template
from moe.data.chat.conversations import Message
from moe.data.chat.jinja import JinjaTemplate, source_of
from moe.data.tokenizers import Tokenizer


class _Words(NamedTuple):
  """What a named template puts around a turn."""

  system: tuple[str, str]  # before it, after it
  user: tuple[str, str]
  given: str  # before a reply; a prompt ends with it
  lead: str  # between that and the reply; the assistant writes it


_NAMED = {
  'deepseek': _Words(('', '\n\n'), ('User: ', '\n\n'), 'Assistant:', ' '),
  'plain': _Words(('', '\n'), ('', '\n'), '', ''),
}


class NamedTemplate(Template):
  """BOS, then each turn; a reply ends with EOS.

  deepseek  system `S\\n\\n`, user `User: U\\n\\n`, assistant `Assistant: A` EOS: the chat_template
            of deepseek-moe-16b-chat's tokenizer_config.json. A prompt ends with `Assistant:`; the
            space is the reply's.
  plain     system `S\\n`, user `U\\n`, assistant `A` EOS: no word of the template's own.
  """

  def __init__(self, name: str, bos_id: int, end_id: int):
    self._words, self._bos_id, self.end_id = _NAMED[name], bos_id, end_id

  def parts(self, messages: Sequence[Message], asks: bool = False) -> list[Part]:
    words, parts = self._words, [Part(self._bos_id)]
    for role, content in messages:
      if role == 'assistant':
        parts += [Part(words.given), Part(words.lead + content, True), Part(self.end_id, True)]
      else:
        before, after = getattr(words, role)
        parts.append(Part(f'{before}{content}{after}'))
    return [*parts, Part(words.given)] if asks else parts


def open_template(name: str, tokenizer: Tokenizer) -> Template:
  """The template that data.chat_template names.

  UserError for the tokenizer's own template if there is none, or it cannot be used.
  """
  if name in _NAMED:
    return NamedTemplate(name, tokenizer.bos_id, tokenizer.eos_id)
  return JinjaTemplate(tokenizer)


def template_of(data: DataConfig, tokenizer: Tokenizer) -> str:
  """The name of the template that a run's chats were trained in; else 'tokenizer' if the tokenizer
  has one of its own; else ''.
  """
  if data.format == 'chat':
    return data.chat_template
  return 'tokenizer' if tokenizer.settings.get('chat_template') else ''


def identity(name: str, tokenizer: Tokenizer | None) -> str:
  """What tells two templates apart in the settings of prepared data."""
  if name in _NAMED or tokenizer is None:
    return name
  source = source_of(tokenizer).encode()
  return f'{name} {hashlib.blake2b(source, digest_size=8).hexdigest()}'
