"""tokenizer.json: the same results as the library's on all sorts of text; and unusable files."""

import json
import os
import random
import subprocess
import sys

import numpy as np
import pytest

from experiments.benchmarks.tokenizer import BOS, EOS, library_of, train_like_deepseek
from moe.analysis.counts import token_classes
from moe.data.tokenizers import from_bytes, from_files, open_tokenizer, train_tokenizer
from moe.errors import UserError
from tests.moe.data.helpers import text

CHINESE = '专家混合模型把前馈网络分成许多小的专家，路由器为每个词选择几个。中文测试，你好！'
EMOJI = ['😀', '👩‍👩‍👧‍👦', '🇨🇭', '👍🏽', '❤️', '🏴󠁧󠁢󠁥󠁮󠁧󠁿', '\u200d', 'é', 'e\u0301']
CODE = 'def f(x):\n    return {"a": x ** 2}  # 平方\n\tif x != 3:\r\n\t\tpass\n\n\n'


def english(dice):
  return text(dice.random(), dice.randrange(1, 80)).capitalize()


def chinese(dice):
  return ''.join(dice.choices(CHINESE + ' \n', k=dice.randrange(1, 90)))


def code(dice):
  begin = dice.randrange(len(CODE))
  return (CODE[begin:] + CODE * dice.randrange(3)).replace('x', dice.choice('xyzßøλ'))


def emoji(dice):
  return ''.join(dice.choices([*EMOJI, ' ', 'a', '\n', BOS, EOS, '<|', '▁'], k=dice.randrange(30)))


def broken(dice):
  raw = bytearray((CHINESE + CODE).encode()[: dice.randrange(1, 200)])
  for _ in range(dice.randrange(1, 20)):
    raw[dice.randrange(len(raw))] = dice.randrange(256)
  return bytes(raw).decode(errors='replace')


TEXTS = [
  sort(random.Random(i)) for i in range(400) for sort in (english, chinese, code, emoji, broken)
]
CONTENT = train_like_deepseek([*TEXTS[:500], CHINESE, CODE], 700)
TOKENIZER = from_bytes(CONTENT)
LIBRARY = library_of(CONTENT)


def edited(**changes) -> bytes:
  """Returns the file with some keys changed. `model` need give only its changed keys."""
  described = json.loads(CONTENT)
  described['model'] |= changes.pop('model', {})
  return json.dumps(described | changes).encode()


def test_2000_texts_as_the_library_itself():
  assert len(TEXTS) == 2000
  ours = TOKENIZER.encode_batch(TEXTS, num_threads=2)
  for written, ids in zip(TEXTS, ours, strict=True):
    theirs = LIBRARY.encode(written, add_special_tokens=False)
    assert ids == theirs.ids
    assert TOKENIZER.offsets(written) == theirs.offsets
    assert TOKENIZER.decode(ids) == LIBRARY.decode(ids)
  assert TOKENIZER.encode_batch(TEXTS) == ours
  assert TOKENIZER.encode(TEXTS[0]) == ours[0]
  assert TOKENIZER.encode_batch([]) == [] and TOKENIZER.encode('') == []


def test_pieces_say_every_byte():
  for written, ids_N in zip(TEXTS, TOKENIZER.encode_arrays(TEXTS), strict=True):
    assert b''.join(TOKENIZER.piece_bytes[i] for i in ids_N) == written.encode()
    lost = TOKENIZER.lost(written, ids_N)
    # The library's decoder takes the added letter ø for the byte that ø stands for elsewhere.
    assert lost == (('ø' in written), 0)


def test_no_text_makes_a_control_piece():
  control = {TOKENIZER.bos_id, TOKENIZER.eos_id}
  assert (TOKENIZER.bos_id, TOKENIZER.eos_id) == (700, 701)
  written = f'{BOS}a{EOS} '
  assert LIBRARY.token_to_id(BOS) == 700
  for each in (written, EOS, BOS):
    ids = TOKENIZER.encode(each)
    assert not control & set(ids) and TOKENIZER.decode(ids) == each
  assert TOKENIZER.decode([700, *TOKENIZER.encode('x'), 701, 5000]) == 'x'
  assert not TOKENIZER.is_text[[700, 701]].any() and TOKENIZER.is_text[:700].all()


def test_vocabulary_as_people_read_it():
  assert TOKENIZER.vocab_size == 703 == len(TOKENIZER.pieces) == len(TOKENIZER.piece_bytes)
  assert TOKENIZER.pieces[700:] == [BOS, EOS, 'ø']
  piece = lambda written: TOKENIZER.pieces[TOKENIZER.encode(written)[0]]
  assert piece(' return') == '▁return'
  assert piece('\n') == '\n'
  assert piece('\U0001f9ff').startswith('<0xF0>')
  classes = token_classes(TOKENIZER, 720)
  names = lambda written: classes[TOKENIZER.encode(written)[0]]
  assert names(' return') != names('中') != names('7')
  assert set(classes[[700, 701, 719]]) == {classes[719]}


def test_long_texts_are_encoded_as_wholes(monkeypatch):
  long = '\n'.join(TEXTS)
  whole, offsets = TOKENIZER.encode(long), TOKENIZER.offsets(long)
  theirs = LIBRARY.encode(long, add_special_tokens=False)
  assert (whole, offsets) == (theirs.ids, theirs.offsets)
  monkeypatch.setattr('moe.data.tokenizers.hugging_face._CHUNK', 500)
  assert len(TOKENIZER._parts(long)) > 20
  assert TOKENIZER.encode(long) == whole
  assert TOKENIZER.offsets(long) == offsets


def test_lone_surrogates_are_refused_as_by_sentencepiece():
  for tokenizer in (TOKENIZER, train_tokenizer([text(i, 200) for i in range(20)], 400)):
    with pytest.raises(TypeError):
      tokenizer.encode('a\ud800b')


def test_no_truncation_no_padding_and_no_second_bos():
  library = library_of(CONTENT)
  library.enable_truncation(4)
  library.enable_padding(length=16)
  from tokenizers import processors

  library.post_processor = processors.TemplateProcessing(
    single=f'{BOS} $A {EOS}', special_tokens=[(BOS, 700), (EOS, 701)]
  )
  tokenizer = from_bytes(library.to_str().encode())
  assert tokenizer.encode_batch(TEXTS[:50]) == TOKENIZER.encode_batch(TEXTS[:50])


def test_it_is_stored_byte_for_byte_with_what_names_its_ends(tmp_path):
  (tmp_path / 'mine.json').write_bytes(CONTENT)
  alone = open_tokenizer(tmp_path / 'mine.json')
  assert alone.files() == {'tokenizer.json': CONTENT}
  config = b'{"bos_token": {"content": "%b"}, "eos_token": "%b", "chat_template": "{{x}}"}'
  config %= (BOS.encode(), EOS.encode())
  (tmp_path / 'tokenizer_config.json').write_bytes(config)
  both = open_tokenizer(tmp_path / 'mine.json')
  assert both.files() == {'tokenizer.json': CONTENT, 'tokenizer_config.json': config}
  assert both.settings['chat_template'] == '{{x}}'
  assert both.sha256 == alone.sha256
  again = from_files(both.files())
  assert again.files() == both.files() and again.encode(CODE) == both.encode(CODE)
  turned = from_bytes(CONTENT, json.dumps({'bos_token': EOS, 'eos_token': BOS}).encode())
  assert (turned.bos_id, turned.eos_id) == (701, 700)
  assert turned.sha256 != both.sha256


def test_bos_and_eos_of_the_post_processor_and_of_well_known_names():
  special = lambda i, name: {
    **json.loads(CONTENT)['added_tokens'][0],
    'id': i,
    'content': name,
    'special': True,
  }
  template = {
    'type': 'TemplateProcessing',
    'single': [
      {'SpecialToken': {'id': '[B]', 'type_id': 0}},
      {'Sequence': {'id': 'A', 'type_id': 0}},
      {'SpecialToken': {'id': '[E]', 'type_id': 0}},
    ],
    'pair': [{'Sequence': {'id': 'A', 'type_id': 0}}, {'Sequence': {'id': 'B', 'type_id': 1}}],
    'special_tokens': {
      x: {'id': x, 'ids': [i], 'tokens': [x]} for x, i in (('[B]', 700), ('[E]', 701))
    },
  }
  made = from_bytes(
    edited(added_tokens=[special(700, '[B]'), special(701, '[E]')], post_processor=template)
  )
  assert (made.bos_id, made.eos_id) == (700, 701)
  made = from_bytes(edited(added_tokens=[special(700, '<|endoftext|>')]))
  assert (made.bos_id, made.eos_id) == (700, 700)


def test_ends_that_the_file_does_not_call_special():
  added = [{**token, 'special': False} for token in json.loads(CONTENT)['added_tokens']]
  config = json.dumps({'bos_token': BOS, 'eos_token': EOS}).encode()
  made = from_bytes(edited(added_tokens=added), config)
  assert not {700, 701} & set(made.encode(f'a{EOS}b{BOS}'))
  assert made.decode([700, *made.encode('x'), 701]) == 'x'


def sentencepiece_like(model: dict) -> bytes:
  """Returns a tokenizer.json like LLaMA's: spaces become U+2581, one is put before the text,
  and text without a piece becomes bytes.
  """
  added = {
    'single_word': False,
    'lstrip': False,
    'rstrip': False,
    'normalized': False,
    'special': True,
  }
  described = {
    'version': '1.0',
    'truncation': None,
    'padding': None,
    'added_tokens': [
      {'id': i, 'content': x, **added} for i, x in enumerate(['<unk>', '<s>', '</s>'])
    ],
    'normalizer': {
      'type': 'Sequence',
      'normalizers': [
        {'type': 'Prepend', 'prepend': '▁'},
        {'type': 'Replace', 'pattern': {'String': ' '}, 'content': '▁'},
      ],
    },
    'pre_tokenizer': None,
    'post_processor': None,
    'decoder': {
      'type': 'Sequence',
      'decoders': [
        {'type': 'Replace', 'pattern': {'String': '▁'}, 'content': ' '},
        {'type': 'ByteFallback'},
        {'type': 'Fuse'},
        {'type': 'Strip', 'content': ' ', 'start': 1, 'stop': 0},
      ],
    },
    'model': model,
  }
  return json.dumps(described).encode()


LETTERS = ['▁', 'a', 'b', 'ab', '<', '/', 's', '>']
BYTES = [f'<0x{i:02X}>' for i in range(256)]


def test_llamas_kind():
  vocab = {x: i for i, x in enumerate(['<unk>', '<s>', '</s>', *BYTES, *LETTERS])}
  model = {
    'type': 'BPE',
    'vocab': vocab,
    'merges': ['a b'],
    'unk_token': '<unk>',
    'byte_fallback': True,
  }
  tokenizer = from_bytes(sentencepiece_like(model))
  assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 2)
  for written in ('ab a', '中', 'a</s>b', ' a  b '):
    ids_N = np.array(tokenizer.encode(written))
    assert tokenizer.lost(written, ids_N) == (0, 0)
    assert b''.join(tokenizer.piece_bytes[i] for i in ids_N) == b' ' + written.encode()
  assert tokenizer.pieces[vocab['▁']] == '▁' and not tokenizer.is_text[:3].any()


def test_unigram_makes_no_control_piece_either_and_unknown_letters_are_lost():
  pieces = [['<unk>', 0.0], ['<s>', 0.0], ['</s>', 0.0], *([x, -3.0] for x in LETTERS)]
  tokenizer = from_bytes(sentencepiece_like({'type': 'Unigram', 'vocab': pieces, 'unk_id': 0}))
  assert 2 not in tokenizer.encode('a</s>b')
  assert len(tokenizer.offsets('a</s>b')) == len(tokenizer.encode('a</s>b'))
  written = 'a中b'
  assert tokenizer.lost(written, np.array(tokenizer.encode(written))) == (1, 3)


@pytest.mark.parametrize(
  'content, config, words',
  [
    (CONTENT[: len(CONTENT) // 2], b'', r'here is damaged: not JSON'),
    (b'{' * 100_000, b'', r'here is damaged: not JSON'),
    (b'{"a": 1}', b'', r'here is no tokenizer\.json that the tokenizers library reads'),
    (CONTENT, b'[1]', r'tokenizer_config\.json beside it is damaged: not a JSON object'),
    (CONTENT, b'{"bos_tok', r'tokenizer_config\.json beside it is damaged: not JSON'),
    (CONTENT, b'{"bos_token": 3}', r'bos_token of tokenizer_config\.json is 3, not a token'),
    (CONTENT, b'{"eos_token": "<end>"}', r"here has no token '<end>', its eos_token"),
    (
      edited(added_tokens=[]),
      b'',
      r'does not say which token is its bos_token: write tokenizer_config\.json',
    ),
    (edited(model={'dropout': 0.1}), b'', r'has a dropout of 0\.1'),
    (edited(model={'end_of_word_suffix': '</w>'}), b'', r"marks words by '</w>'"),
    (edited(decoder=None), b'', r'has the decoder none, which does not say which bytes'),
    (
      edited(
        model={
          'type': 'WordPiece',
          'unk_token': '[UNK]',
          'continuing_subword_prefix': '##',
          'max_input_chars_per_word': 9,
        }
      ),
      b'',
      'here is a WordPiece',
    ),
  ],
)
def test_files_of_no_use_are_one_line(content, config, words):
  with pytest.raises(UserError, match=words) as error:
    from_bytes(content, config, 'tokenizer here')
  assert '\n' not in str(error.value)


def test_any_damage_is_noticed_or_harmless():
  dice = random.Random(0)
  for _ in range(60):
    damaged = bytearray(CONTENT)
    damaged[dice.randrange(len(damaged))] ^= 1 << dice.randrange(8)
    try:
      assert from_bytes(bytes(damaged)).encode('a b') is not None
    except UserError as error:
      assert '\n' not in str(error)


def test_without_the_library(monkeypatch):
  monkeypatch.setitem(sys.modules, 'tokenizers', None)
  with pytest.raises(UserError, match=r"pip install '\.\[convert\]'"):
    from_bytes(CONTENT)


def test_it_is_imported_only_for_its_files():
  program = (
    'import sys, moe.data.prepare, moe.run; assert "tokenizers" not in sys.modules; '
    'assert "moe.data.tokenizers.hugging_face" not in sys.modules'
  )
  subprocess.run([sys.executable, '-c', program], check=True)


def test_a_fork_after_threads_is_silent(tmp_path):
  """The library would warn that its threads do not survive the fork."""
  (tmp_path / 'tokenizer.json').write_bytes(CONTENT)
  program = (
    'import os, sys\nfrom moe.data.tokenizers import open_tokenizer\n'
    f't = open_tokenizer({str(tmp_path / "tokenizer.json")!r})\n'
    'before = t.encode_batch(["a b c"] * 500, 2)\n'
    'if not (child := os.fork()):\n  os._exit(t.encode_batch(["a b c"] * 500, 2) != before)\n'
    'sys.exit(os.waitpid(child, 0)[1])\n'
  )
  environment = {k: v for k, v in os.environ.items() if k != 'TOKENIZERS_PARALLELISM'}
  done = subprocess.run([sys.executable, '-c', program], capture_output=True, env=environment)
  assert (done.returncode, done.stderr) == (0, b'')
