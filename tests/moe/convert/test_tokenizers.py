"""A checkpoint's tokenizer goes in and out byte for byte, and another model's is refused."""

import hashlib
import json

import pytest

from experiments.benchmarks.tokenizer import BOS, EOS, train_like_deepseek
from experiments.notebooks.released import DEEPSEEK, tensors, write
from moe.convert.from_hf import from_hf
from moe.convert.to_hf import to_hf
from moe.data.tokenizers import train_tokenizer
from moe.errors import UserError
from moe.generate import Sampling, generate
from moe.run import load_run
from tests import in_process
from tests.moe.data.helpers import text

ROWS = 448


def hash_of(seed: int) -> str:
  """Returns a seed's word of letters; enough words train any number of pieces."""
  return (
    hashlib.sha256(bytes([seed])).hexdigest().translate(str.maketrans('0123456789', 'ghijklmnop'))
  )


TEXTS = [text(seed, 200) + f' {hash_of(seed)}' for seed in range(90)]


@pytest.fixture
def source(tmp_path):
  hf = DEEPSEEK | {'vocab_size': ROWS}
  return write(tmp_path / 'hf', hf, tensors(hf))


def test_tokenizer_json_comes_along_and_out_again(source, tmp_path):
  names = {'bos_token': BOS, 'eos_token': EOS, 'add_bos_token': True, 'chat_template': '{{ x }}'}
  contents = {
    'tokenizer.json': train_like_deepseek(TEXTS, 400),
    'tokenizer_config.json': json.dumps(names).encode(),
  }
  for name, content in contents.items():
    (source / name).write_bytes(content)
  # A tokenizer.model beside tokenizer.json is for other programs.
  (source / 'tokenizer.model').write_bytes(train_tokenizer(TEXTS, 400).to_bytes())
  from_hf(source, tmp_path / 'run')
  run = load_run(tmp_path / 'run')
  assert run.tokenizer.files() == contents
  [completion] = generate(run, ['the expert'], 4, Sampling(1e6))
  assert all(i < 403 and i != 400 for i in completion.tokens)
  to_hf(tmp_path / 'run', tmp_path / 'out')
  for name, content in contents.items():
    assert (tmp_path / 'run' / name).read_bytes() == content
    assert (tmp_path / 'out' / name).read_bytes() == content
  written = json.loads((tmp_path / 'out/config.json').read_text())
  assert (written['bos_token_id'], written['eos_token_id']) == (400, 401)
  assert not (tmp_path / 'out/tokenizer.model').exists()


def test_sentencepiece_alone_comes_along_too(source, tmp_path):
  model = train_tokenizer(TEXTS, 400).to_bytes()
  (source / 'tokenizer.model').write_bytes(model)
  from_hf(source, tmp_path / 'run')
  to_hf(tmp_path / 'run', tmp_path / 'out')
  for folder in ('run', 'out'):
    assert (tmp_path / folder / 'tokenizer.model').read_bytes() == model


def test_a_converted_run_scores_given_text(source, tmp_path):
  (source / 'tokenizer.model').write_bytes(train_tokenizer(TEXTS, 400).to_bytes())
  from_hf(source, tmp_path / 'run')
  (tmp_path / 'x.txt').write_text(TEXTS[0])
  flags = (f'--workdir={tmp_path}/run', f'--sources=x={tmp_path}/x.txt', '--format=json')
  done = in_process.run('evaluate', *flags)
  told, ids = json.loads(done.stdout), load_run(tmp_path / 'run').tokenizer.encode(TEXTS[0])
  assert told['total']['tokens'] == len(ids) + 1 and told['total']['loss'] > 0
  assert told['trained_on'] is None and 'there is no prepared data in' in done.stderr


@pytest.mark.parametrize(
  'pieces, kept, words',
  [(500, None, 'its tokenizer has 503 pieces'), (400, 999, r'tokenizer\.json is damaged')],
)
def test_a_tokenizer_of_no_use_is_named_and_there_is_no_run(source, tmp_path, pieces, kept, words):
  (source / 'tokenizer.json').write_bytes(train_like_deepseek(TEXTS, pieces)[:kept])
  with pytest.raises(UserError, match=words) as error:
    from_hf(source, tmp_path / 'run')
  assert '\n' not in str(error.value)
  assert not (tmp_path / 'run').exists()
