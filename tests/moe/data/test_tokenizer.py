import io
import itertools
import subprocess
import sys

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from moe.data.sample import TextSample
from moe.data.tokenizers import open_tokenizer, train_tokenizer
from moe.errors import UserError
from tests.moe.data.helpers import text

SAMPLE = [text(seed, 200) for seed in range(30)]
TOKENIZER = train_tokenizer(SAMPLE, 400)

AWKWARD = [
  '',
  '\0',
  'a\0b',
  '\r\n a\r\n\t\t x',
  '  lead and trail  ',
  '\n\n\n     x\n',
  '\u2581 is \u2581\u2581 no space',
  '\U0010fffe1\U0010fffe',
  '<s></s><unk><0x0A>',
  '😀 é 中文 e\u0301',
  '\ufeff\u2028\x85\xa0\u3000',
]


@pytest.mark.parametrize('awkward', AWKWARD)
def test_awkward_text_comes_back(awkward):
  assert TOKENIZER.decode(TOKENIZER.encode(awkward)) == awkward


@settings(max_examples=300, deadline=None)
@given(
  st.text(st.characters(exclude_categories=['Cs']))
  | st.text(' \n\t\r\0\u2581\U0010fffe01ab', max_size=40)
)
def test_any_text_comes_back(any_text):
  ids = TOKENIZER.encode(any_text)
  assert TOKENIZER.decode(ids) == any_text
  assert not {TOKENIZER.bos_id, TOKENIZER.eos_id} & set(ids)


@pytest.mark.parametrize('awkward', [*AWKWARD, 'the expert = 12'])
def test_offsets_and_bytes_say_which_text_a_piece_is(awkward):
  ids, spans = TOKENIZER.encode(awkward), TOKENIZER.offsets(awkward)
  assert len(ids) == len(spans)
  assert {i for begin, end in spans for i in range(begin, end)} == set(range(len(awkward)))
  assert all(a[0] <= b[0] and a[1] <= b[1] for a, b in itertools.pairwise(spans))
  if not {'\u2581', '\U0010fffe'} & set(awkward):
    assert b''.join(TOKENIZER.piece_bytes[i] for i in ids) == awkward.encode()


def test_text_beyond_one_part_is_encoded_as_a_whole(monkeypatch):
  whole = TOKENIZER.encode(SAMPLE[0])
  assert len(SAMPLE[0]) > 500
  monkeypatch.setattr('moe.data.tokenizers.sentencepiece._LONGEST_PART', 250)
  assert TOKENIZER.encode(SAMPLE[0]) == whole


def test_batch_equals_one_by_one_for_any_threads():
  one_by_one = [TOKENIZER.encode(sample) for sample in [*AWKWARD, *SAMPLE]]
  assert TOKENIZER.encode_batch([*AWKWARD, *SAMPLE], num_threads=1) == one_by_one
  assert TOKENIZER.encode_batch([*AWKWARD, *SAMPLE], num_threads=3) == one_by_one


def test_indentation_is_cheap():
  assert len(TOKENIZER.encode('\n        ')) == 1


def test_training_is_deterministic_and_silent(capfd):
  assert train_tokenizer(SAMPLE, 400).to_bytes() == TOKENIZER.to_bytes()
  assert capfd.readouterr() == ('', '')


@pytest.mark.parametrize(
  'mark', ['\u2585', '\0', '\t', '\u2581', '\ufffd', '\u2047', '<unk>', '<s>']
)
def test_no_character_keeps_a_text_out_of_training(mark):
  """Every document has the mark, and must teach as much as with a letter in its place."""
  learnt = [
    train_tokenizer([sample.replace(' ', f' {letter} ', 3) for sample in SAMPLE], 400)
    for letter in (mark, 'é')
  ]
  sizes = [sum(map(len, tokenizer.encode_batch(SAMPLE))) for tokenizer in learnt]
  assert sizes[0] < 1.02 * sizes[1]


def test_ids_past_the_vocabulary_and_control_pieces_decode_to_nothing():
  ids = [TOKENIZER.bos_id, *TOKENIZER.encode('x'), TOKENIZER.vocab_size + 7, TOKENIZER.eos_id]
  assert TOKENIZER.decode(ids) == 'x'


def test_many_characters_fit_into_a_small_vocabulary():
  chinese = ''.join(chr(0x4E00 + (i * i) % 3000) for i in range(20_000))
  tokenizer = train_tokenizer([chinese], 600)
  assert tokenizer.vocab_size == 600
  assert tokenizer.decode(tokenizer.encode(chinese)) == chinese


@pytest.mark.parametrize('vocab_size, message', [(100_000, 'too large'), (100, 'too small')])
def test_vocabulary_size_that_cannot_be(vocab_size, message):
  with pytest.raises(
    UserError, match=rf'model\.vocab_size={vocab_size} is {message}.*(at most|at least) \d+'
  ) as error:
    train_tokenizer(SAMPLE, vocab_size)
  assert '\n' not in str(error.value)


def test_files_that_are_no_model(tmp_path):
  with pytest.raises(UserError, match=r'missing\.model: No such file'):
    open_tokenizer(tmp_path / 'missing.model')
  for contents in (b'', b'no model', b'\0' * 100):
    (tmp_path / 'bad.model').write_bytes(contents)
    with pytest.raises(UserError, match=r'bad\.model is not a SentencePiece model'):
      open_tokenizer(tmp_path / 'bad.model')


def test_model_without_eos(tmp_path):
  written = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(SAMPLE), model_writer=written, vocab_size=40, eos_id=-1, minloglevel=2
  )
  (tmp_path / 'no_eos.model').write_bytes(written.getvalue())
  with pytest.raises(UserError, match=r'no_eos\.model has no EOS piece'):
    open_tokenizer(tmp_path / 'no_eos.model')


def test_sample_is_bounded_even_and_independent_of_order():
  texts = [('big', text(i, 4000)) for i in range(20)] + [('small', text(100, 500))]
  samples = []
  for order in (texts, texts[::-1]):
    sample = TextSample(100_000)
    for domain, written in order:
      sample.add(domain, written)
    samples.append(sample.texts())
  assert samples[0] == samples[1]
  assert text(100, 500) in samples[0]
  assert 80_000 < sum(map(len, samples[0])) < 120_000


def test_corpus_and_tokenizer_import_no_jax():
  program = (
    'import sys, moe.data.corpus, moe.data.tokenizers, moe.data.prepare; '
    'assert "jax" not in sys.modules'
  )
  subprocess.run([sys.executable, '-c', program], check=True)
