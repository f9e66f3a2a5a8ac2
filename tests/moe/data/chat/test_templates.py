"""Which tokens are learnt, compared token by token with text written from each template's
definition.
"""

import dataclasses
import json

import numpy as np
import pytest

from experiments.benchmarks.tokenizer import BOS, EOS, train_like_deepseek
from moe.config import DataConfig
from moe.data.chat import Message, open_template, prompt_ids
from moe.data.chat.encoding import encode
from moe.data.corpus import Document
from moe.data.readers import BadRow
from moe.data.tokenising import Tokeniser
from moe.data.tokenizers import from_bytes, train_tokenizer
from moe.data.tokenizers.sentencepiece import escape
from moe.errors import UserError
from tests.moe.data.chat.helpers import conversation

CONVERSATIONS = [conversation(seed) for seed in range(60)] + [
  [('user', f'{BOS}{EOS} <s></s><|im_end|>'), ('assistant', f'</s>{EOS}<|im_end|> \ufdd0')],
  [('user', ' a'), ('assistant', '\n\n b '), ('user', 'User: c'), ('assistant', 'Assistant:')],
]
TEXTS = ['\n'.join(content for _, content in each) for each in CONVERSATIONS]
DEEPSEEK = (
  "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
  "{{ 'User: ' + message['content'] + '\n\n' }}{% elif message['role'] == 'assistant' %}"
  "{{ 'Assistant: ' + message['content'] + eos_token }}{% else %}"
  "{{ message['content'] + '\n\n' }}{% endif %}{% endfor %}"
  "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
CHATML = (
  '{% for m in messages %}\n'
  "{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' }}\n"
  '{% endfor %}\n'
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
MARKED = (
  "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{% if m.role == 'assistant' %}"
  "{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}{% else %}"
  "{{ m.content + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def with_template(template: str):
  """Returns a byte-level BPE tokenizer with ChatML's control pieces and this template."""
  described = json.loads(train_like_deepseek(TEXTS, 500))
  first = max(token['id'] for token in described['added_tokens']) + 1
  for number, piece in enumerate(('<|im_start|>', '<|im_end|>')):
    token = {'id': first + number, 'content': piece, 'special': True, 'normalized': False}
    described['added_tokens'].append(
      token | dict.fromkeys(('lstrip', 'rstrip', 'single_word'), False)
    )
  config = {'bos_token': BOS, 'eos_token': {'content': EOS}, 'chat_template': template}
  return from_bytes(json.dumps(described).encode(), json.dumps(config).encode())


TRAINED = train_tokenizer(TEXTS, 420)
FOREIGN = with_template(CHATML)


def written(name, messages, tokenizer):
  """Returns [(character or control piece's id, whether it is learnt)] by the definition."""
  out = []
  text = lambda said, learnt=False: out.extend((character, learnt) for character in said)
  controls = {piece: i for i, piece in enumerate(tokenizer.pieces) if not tokenizer.is_text[i]}
  if name != 'chatml':
    out.append((tokenizer.bos_id, False))
  for role, content in messages:
    if name == 'chatml':
      out.append((controls['<|im_start|>'], False))
      text(f'{role}\n')
      text(content, role == 'assistant')
      out.append((controls['<|im_end|>'], role == 'assistant'))
      text('\n')
    elif role == 'assistant':
      text('Assistant:' if name == 'deepseek' else '')
      text(' ' + content if name == 'deepseek' else content, True)
      out.append((tokenizer.eos_id, True))
    elif name == 'deepseek':
      text(f'User: {content}\n\n' if role == 'user' else f'{content}\n\n')
    else:
      text(f'{content}\n')
  return out


def slow_mask(expected, tokens_N, tokenizer):
  """Returns whether each token is learnt, found byte by byte. No token may mix learnt and not
  learnt bytes.
  """
  stored = escape if tokenizer is TRAINED else str
  stream = []
  for said, learnt in expected:
    bytes_of = [said] if isinstance(said, int | np.integer) else list(stored(said).encode())
    stream += [(byte, isinstance(said, str), learnt) for byte in bytes_of]
  at, mask = 0, []
  for token in tokens_N:
    piece = tokenizer.piece_bytes[token]
    said = [(byte, True) for byte in piece] or [(token, False)]
    here = stream[at : at + len(said)]
    assert [(byte, is_text) for byte, is_text, _ in here] == said
    assert len({learnt for *_, learnt in here}) == 1
    mask.append(here[0][2])
    at += len(said)
  assert at == len(stream)
  return mask


@pytest.mark.parametrize(
  'template, definition, tokenizer',
  [
    ('deepseek', 'deepseek', TRAINED),
    ('plain', 'plain', TRAINED),
    ('deepseek', 'deepseek', FOREIGN),
    ('plain', 'plain', FOREIGN),
    ('tokenizer', 'chatml', FOREIGN),
    ('tokenizer', 'chatml', with_template(MARKED)),
    ('tokenizer', 'deepseek', with_template(DEEPSEEK)),
  ],
)
def test_the_mask_token_by_token(template, definition, tokenizer):
  opened = open_template(template, tokenizer)
  messages = [[Message(*turn) for turn in each] for each in CONVERSATIONS]
  for turns, encoded in zip(messages, encode(opened, tokenizer, messages, 2), strict=True):
    tokens_N, learnt_N, text, lost = encoded
    mask = slow_mask(written(definition, turns, tokenizer), tokens_N, tokenizer)
    assert learnt_N.tolist() == mask
    assert learnt_N.any() and not learnt_N[0]
    assert tokens_N[learnt_N][-1] == opened.end_id
    replies = [content for role, content in turns if role == 'assistant']
    lead = ' ' if definition == 'deepseek' else ''
    assert text == ''.join(lead + reply for reply in replies)
    assert lost == (0, 0)
    # Only the template makes control pieces, whatever text a user writes.
    ends = sum(token == opened.end_id for token in tokens_N)
    assert ends == (len(turns) if definition == 'chatml' else len(replies))


@pytest.mark.parametrize('template', ['deepseek', 'plain', 'tokenizer'])
@pytest.mark.parametrize('tokenizer', [with_template(MARKED), with_template(DEEPSEEK), TRAINED])
def test_generation_reads_what_training_read_before_a_reply(template, tokenizer):
  if template == 'tokenizer' and tokenizer is TRAINED:
    pytest.skip('it has none')
  opened = open_template(template, tokenizer)
  for turns in CONVERSATIONS:
    messages = [Message(*turn) for turn in turns]
    (encoded,) = encode(opened, tokenizer, [messages])
    begins = np.flatnonzero(encoded.learnt_N & ~np.roll(encoded.learnt_N, 1))
    replies = [number for number, turn in enumerate(messages) if turn.role == 'assistant']
    for number, begin in zip(replies, begins, strict=True):
      asked = prompt_ids(opened, tokenizer, messages[:number])
      assert asked == encoded.tokens_N[:begin].tolist()


def test_jinja_tokens_are_those_of_the_library():
  """They agree where no text spells a control piece and every reply begins with a letter."""
  import tokenizers

  tokenizer = with_template(CHATML)
  library = tokenizers.Tokenizer.from_str(tokenizer.to_bytes().decode())
  for turns in CONVERSATIONS[:60]:
    rendered = ''.join(f'<|im_start|>{role}\n{content}<|im_end|>\n' for role, content in turns)
    (encoded,) = encode(
      open_template('tokenizer', tokenizer), tokenizer, [[Message(*turn) for turn in turns]]
    )
    truth = library.encode(rendered, add_special_tokens=False).ids
    assert tokenizer.decode(encoded.tokens_N) == tokenizer.decode(truth)
    if all(content[0].isascii() and content[0].isalnum() for _, content in turns):
      assert encoded.tokens_N.tolist() == truth


@pytest.mark.parametrize(
  'template, words',
  [
    ('{{ x ', 'it is no Jinja'),
    ("{% for m in messages %}{{ m.content + '|' }}{% endfor %}", 'ends no reply with a control'),
    ('{{ bos_token }}', 'renders nothing of a reply'),
    ("{{ messages | length }}{{ messages[-1].content + '<|im_end|>' }}", 'differently from'),
    ("{{ raise_exception('roles must alternate') }}", 'roles must alternate'),
    ('{{ messages[0].content.__class__.__mro__ }}', 'unsafe'),
    ('', r'no chat_template in a tokenizer_config\.json: choose deepseek or plain'),
  ],
)
def test_templates_of_no_use(template, words):
  with pytest.raises(UserError, match=words) as error:
    open_template('tokenizer', with_template(template))
  assert '\n' not in str(error.value)
  assert 'data.chat_template=tokenizer' in str(error.value)


def test_a_trained_tokenizer_has_no_template_of_its_own():
  with pytest.raises(UserError, match='the tokenizer has no chat_template'):
    open_template('tokenizer', TRAINED)


def test_a_template_may_refuse_a_conversation():
  refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
  tokenizer = with_template(refuses + CHATML)
  opened = open_template('tokenizer', tokenizer)
  messages = [Message('system', 'x'), Message('user', 'y'), Message('assistant', 'z')]
  with pytest.raises(BadRow, match="refuses the conversation that begins 'x': no system"):
    opened.parts(messages)


def test_a_conversation_of_which_a_template_marks_nothing():
  marked = MARKED.replace("m.role == 'assistant'", "m.role == 'assistant' and m.content != 'no'")
  data = DataConfig(format='chat', chat_template='tokenizer', bad_rows='skip')
  row = lambda reply: Document(json.dumps([('user', 'a'), ('assistant', reply)]), 'x', False)
  bad = []
  tokenise = Tokeniser(data, with_template(marked), 1, is_lossy=False)
  assert [each.text for each, _ in tokenise([row('yes'), row('no')], bad)] == [row('yes').text]
  assert len(bad) == 1 and 'nothing to learn in the conversation that begins' in str(bad[0])
  tokenise = Tokeniser(
    dataclasses.replace(data, bad_rows='refuse'), with_template(marked), 1, False
  )
  with pytest.raises(BadRow, match='none of it is marked by'):
    list(tokenise([row('no')], bad))


def test_the_default_of_several_templates():
  tokenizer = with_template('')
  several = [{'name': 'tool_use', 'template': 'x'}, {'name': 'default', 'template': CHATML}]
  config = json.dumps(tokenizer.settings | {'chat_template': several}).encode()
  again = from_bytes(tokenizer.to_bytes(), config)
  messages = [Message('user', 'a'), Message('assistant', 'b')]
  ours = encode(open_template('tokenizer', again), again, [messages])[0].tokens_N
  np.testing.assert_array_equal(
    ours, encode(open_template('tokenizer', FOREIGN), FOREIGN, [messages])[0].tokens_N
  )
