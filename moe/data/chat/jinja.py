"""The chat template that a tokenizer came with, as Hugging Face's transformers renders it: Jinja in
a sandbox, whose variables are `messages`, `add_generation_prompt` and the special tokens.

A rendered conversation is one string, in which a control piece and its spelling in what a user
wrote look alike. So each such spelling is broken by a Unicode noncharacter before rendering, and
the noncharacter is taken out afterwards.
"""

import datetime
import json
import re
from collections.abc import Iterator, Sequence

from moe.data.chat.base import Part, Template
from moe.data.chat.conversations import Message
from moe.data.readers import BadRow
from moe.data.tokenizers import CONFIG_FILE, Tokenizer
from moe.errors import UserError, one_line

_KEY = 'data.chat_template=tokenizer'
_NONCHARACTERS = [chr(code) for code in range(0xFDD0, 0xFDF0)]
_SPECIAL = ('bos_token', 'eos_token', 'unk_token', 'sep_token', 'pad_token', 'cls_token')
_PROBE = [Message('user', 'a'), Message('assistant', 'b')]


class JinjaTemplate(Template):
  """`chat_template` of tokenizer_config.json.

  If the template has {% generation %} … {% endgeneration %} blocks, a reply is what stands in one.
  Else it is what the reply adds to the rendered prompt before it, up to the last control piece.
  """

  def __init__(self, tokenizer: Tokenizer):
    """UserError if the tokenizer has no template, or one that is no Jinja or ends no reply with a
    control piece.
    """
    source = source_of(tokenizer)
    self._has_blocks = bool(re.search(r'\{%-?\s*generation\b', source))
    self._template = _compiled(source)
    self._special = _special_tokens(tokenizer)
    controls = {
      piece: i for i, piece in enumerate(tokenizer.pieces) if piece and not tokenizer.is_text[i]
    }
    # Longest first: one may begin with another.
    self._controls = dict(sorted(controls.items(), key=lambda item: -len(item[0])))
    self._control = re.compile('|'.join(map(re.escape, self._controls)) or '(?!)')
    self.end_id = self._end()

  def parts(self, messages: Sequence[Message], asks: bool = False) -> list[Part]:
    unused = [x for x in _NONCHARACTERS if not any(x in turn.content for turn in messages)]
    if len(unused) < 3:
      raise BadRow(f'{_shown(messages)} has nearly every noncharacter of U+FDD0 to U+FDEF')
    broken, *marks = unused[:3]
    turns = [Message(role, self._break(text, broken)) for role, text in messages]
    if self._has_blocks:
      pieces = _between(self._render(turns, asks, marks), *marks)
    else:
      pieces = self._by_prefix(turns, asks)
    return [part for text, learnt in pieces for part in self._parts(text, broken, learnt)]

  def _end(self):
    learnt = [part.said for part in self.parts(_PROBE) if part.learnt]
    if not learnt:
      raise UserError(f'{_KEY}: it renders nothing of a reply')
    if not isinstance(learnt[-1], int):
      raise UserError(
        f'{_KEY}: it ends no reply with a control piece, and nothing would stop a reply: choose '
        'deepseek or plain'
      )
    return learnt[-1]

  def _break(self, content, broken):
    return self._control.sub(lambda found: found[0][0] + broken + found[0][1:], content)

  def _by_prefix(self, turns, asks) -> Iterator[tuple[str, bool]]:
    """(text, whether it is a reply), found by rendering the conversation up to each reply."""
    whole, at = self._render(turns, asks), 0
    for number, turn in enumerate(turns):
      if turn.role != 'assistant':
        continue
      before, after = self._render(turns[:number], True), self._render(turns[: number + 1], False)
      if not (whole.startswith(after) and after.startswith(before) and len(before) >= at):
        raise BadRow(
          f'{_KEY}: it renders the beginning of {_shown(turns)} differently from the whole, so '
          'that replies cannot be found: mark them with {% generation %}'
        )
      yield whole[at : len(before)], False
      reply, at = after[len(before) :], len(after)
      # The model need not write what follows the end of its turn, often a newline.
      last = max((found.end() for found in self._control.finditer(reply)), default=len(reply))
      yield reply[:last], True
      yield reply[last:], False
    yield whole[at:], False

  def _parts(self, text, broken, learnt):
    """Splits a rendered text into text and control pieces."""
    at = 0
    for found in [*self._control.finditer(text), None]:
      if said := text[at : found.start() if found else None].replace(broken, ''):
        yield Part(said, learnt)
      if found:
        yield Part(self._controls[found[0]], learnt)
        at = found.end()

  def _render(self, turns, asks, marks=('', '')):
    self._template.environment.marks = marks
    try:
      return self._template.render(
        messages=[turn._asdict() for turn in turns],
        add_generation_prompt=asks,
        tools=None,
        documents=None,
        **self._special,
      )
    # A template may raise any exception.
    except Exception as error:
      raise BadRow(f'{_KEY}: it refuses {_shown(turns)}: {one_line(error)}') from error


def source_of(tokenizer: Tokenizer) -> str:
  """The template's text. UserError if the tokenizer has none."""
  found = tokenizer.settings.get('chat_template')
  if isinstance(found, list):
    # Several templates, by name.
    found = {each.get('name'): each.get('template') for each in found}.get('default')
  if not isinstance(found, str) or not found:
    raise UserError(
      f'{_KEY}: the tokenizer has no chat_template in a {CONFIG_FILE}: choose deepseek or plain'
    )
  return found


def _compiled(source):
  try:
    import jinja2
    import jinja2.ext
    import jinja2.sandbox
  except ImportError as error:
    raise UserError(f"{_KEY} needs Jinja: pip install '.[chat]'") from error

  class Generation(jinja2.ext.Extension):
    """{% generation %} … {% endgeneration %}: its text between the environment's marks."""

    tags = {'generation'}  # noqa: RUF012

    def parse(self, parser):
      line = next(parser.stream).lineno
      body = parser.parse_statements(['name:endgeneration'], drop_needle=True)
      return jinja2.nodes.CallBlock(self.call_method('marked'), [], [], body).set_lineno(line)

    def marked(self, caller):
      begin, end = self.environment.marks
      return begin + caller() + end

  def refuse(message):
    raise jinja2.TemplateError(message)

  def as_json(value, indent=None, separators=None, sort_keys=False, ensure_ascii=False):
    return json.dumps(
      value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )

  environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[Generation, 'jinja2.ext.loopcontrols']
  )
  environment.filters['tojson'] = as_json
  environment.globals['raise_exception'] = refuse
  environment.globals['strftime_now'] = lambda form: datetime.datetime.now().strftime(form)
  try:
    return environment.from_string(source)
  except jinja2.TemplateError as error:
    raise UserError(f'{_KEY}: it is no Jinja: {one_line(error)}') from error


def _special_tokens(tokenizer):
  found = {name: tokenizer.settings.get(name) for name in _SPECIAL}
  texts = {
    name: token.get('content') if isinstance(token, dict) else token
    for name, token in found.items()
  }
  named = {name: text for name, text in texts.items() if isinstance(text, str)}
  pieces = tokenizer.pieces
  return {
    'bos_token': pieces[tokenizer.bos_id],
    'eos_token': pieces[tokenizer.eos_id],
    **named,
  }


def _between(text, begin, end):
  """(text, whether it stood between the marks), without them."""
  for part in re.split(f'({begin}[^{end}]*{end})', text):
    marked = part.startswith(begin)
    yield (part[1:-1] if marked else part), marked


def _shown(messages):
  content = messages[0].content if messages else ''
  return f'the conversation that begins {content[:40]!r}'
