"""A conversation with a trained model: its turns, their history, and the loop that reads lines."""

import sys
from collections.abc import Iterable, Iterator
from typing import NamedTuple, TextIO

from moe.data.chat import Message, Template, open_template, prompt_ids, template_of
from moe.data.tokenizers import Tokenizer, must_have
from moe.errors import UserError
from moe.generate import Sampling, Trained, check_unicode, stream_tokens

_UNFINISHED = '\ufffd'  # decoding shows this for bytes that do not form a character yet
_HELP = '/reset forgets the conversation, /system TEXT sets the system message'


class Options(NamedTuple):
  """How replies are sampled."""

  sampling: Sampling
  max_new_tokens: int = 512  # of a reply
  seed: int = 0


class Conversation:
  """A conversation: for each reply the model reads as many of the latest turns as the context
  holds.
  """

  def __init__(self, run: Trained, options: Options, template: str = ''):
    """`template`: a value of data.chat_template; '' takes `template_of` the run, or else deepseek.
    UserError if the run has no tokenizer, or its tokenizer lacks the template asked for.
    """
    options.sampling.check()
    if options.max_new_tokens < 1:
      raise UserError(f'max_new_tokens={options.max_new_tokens} must be at least 1')
    self._run, self._options = run, options
    self._tokenizer = must_have(run.tokenizer)
    own = template_of(run.config.data, self._tokenizer)
    self.template_name = template or own or 'deepseek'
    self._template: Template = open_template(self.template_name, self._tokenizer)
    self.system, self.turns = '', []
    self.forgotten = 0  # turns that the last question pushed out of the context
    self._asked = 0

  def reset(self) -> None:
    """Forgets all turns; the system message stays."""
    self.turns = []

  def ask(self, question: str) -> Iterator[str]:
    """Yields the reply in pieces as they come, and adds question and reply to the history after
    the last.

    UserError for a question that the context cannot hold; the history then stays as it was.
    """
    check_unicode(question, 'the question')
    turns, ids = self._read([*self.turns, Message('user', question)])
    self.forgotten = len(self.turns) + 1 - len(turns)
    seed = (self._options.seed + self._asked) % 2**32
    self._asked += 1
    limits = self._options.max_new_tokens, self._options.sampling, seed
    tokens = stream_tokens(self._run, ids, *limits, self._template.end_id)
    said = []
    for piece in texts_of(tokens, self._tokenizer, self._template.end_id):
      said.append(piece)
      yield piece
    self.turns = [*turns, Message('assistant', ''.join(said))]

  def _read(self, turns):
    """(the latest turns that leave room for a reply, from a question on; the prompt's ids)."""
    context = self._run.config.data.seq_len
    room = context - min(self._options.max_new_tokens, context // 4)
    system = [Message('system', self.system)] if self.system else []
    while True:
      ids = prompt_ids(self._template, self._tokenizer, [*system, *turns])
      questions = [i for i, turn in enumerate(turns) if turn.role == 'user']
      if len(ids) <= room or (len(questions) == 1 and len(ids) <= context):
        return turns, ids
      if len(questions) == 1:
        raise UserError(
          f'the question {turns[-1].content[:30]!r}… has {len(ids)} tokens with all that stands '
          f'before it always; the context is {context} (data.seq_len)'
        )
      turns = turns[questions[1] :]


def texts_of(tokens: Iterable[int], tokenizer: Tokenizer, end_id: int) -> Iterator[str]:
  """Yields the decoded text as it grows, without leading space; bytes wait until they form a
  character.
  """
  ids, shown = [], ''
  for token in tokens:
    if token == end_id:
      break
    ids.append(token)
    text = tokenizer.decode(ids).lstrip().rstrip(_UNFINISHED)
    if text.startswith(shown) and text != shown:
      yield text[len(shown) :]
      shown = text
  text = tokenizer.decode(ids).lstrip()
  if text.startswith(shown) and text != shown:
    yield text[len(shown) :]


def talk(conversation: Conversation, lines: TextIO, out: TextIO) -> None:
  """Answers every line, a question or a command, until the input ends.

  On a terminal an error is printed and the conversation goes on; over a pipe UserError is raised.
  """
  is_terminal = lines.isatty()
  if is_terminal:
    tell(f'{_HELP}; Ctrl-D ends it')
  for line in _typed(lines) if is_terminal else lines:
    try:
      _answer(conversation, line.strip(), out)
    except UserError as error:
      if not is_terminal:
        raise
      tell(f'error: {error}')


def tell(note: str) -> None:
  """Prints a note for people to stderr: stdout holds replies alone."""
  print(note, file=sys.stderr, flush=True)


def _answer(conversation, line, out):
  command, _, rest = line.partition(' ')
  if not line:
    return
  if line == '/reset':
    conversation.reset()
  elif command == '/system':
    check_unicode(rest, 'the system message')
    conversation.system = rest.strip()
  elif command.startswith('/'):
    raise UserError(f'there is no command {command}: {_HELP}')
  else:
    for piece in conversation.ask(line):
      out.write(piece)
      out.flush()
    out.write('\n')
    out.flush()
    if conversation.forgotten:
      tell(f'({conversation.forgotten} turns no longer fit into the context, and are forgotten)')


def _typed(lines: TextIO) -> Iterator[str]:
  """Yields lines as they are typed, with line editing."""
  import readline  # noqa: F401  importing it gives input() line editing

  while True:
    try:
      yield input('> ')
    except EOFError:
      return
