"""Small corpora and configs for the tests of moe.data."""

import io
import random

import sentencepiece

from experiments import base
from moe import config as moe_config

WORDS = [
  'def',
  'return',
  'the',
  'expert',
  'router',
  'token',
  'shared',
  'gate',
  'of',
  'layers',
  '12',
  '345',
  '=',
  '+',
]
WORDS += ['(', ')', ':', ',', '.', '\n', '\n\n', '', 'x', 'y\n   ']


def foreign_model() -> bytes:
  """Returns a tokenizer of 40 pieces, as spm_train makes it by default: no byte fallback, a dummy
  prefix, spaces normalised.
  """
  written = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(['alpha beta gamma delta of the and gate'] * 50),
    model_writer=written,
    model_type='bpe',
    vocab_size=40,
    minloglevel=2,
  )
  return written.getvalue()


def small_config(**data):
  """Returns base.py's config with a 400-piece tokenizer and 4 rows of 32 tokens.
  Keyword arguments change keys of `data`.
  """
  config = base.get_config()
  config.model.vocab_size = data.pop('model_vocab_size', 400)
  config.evaluation.batch_size = 4
  config.data.update({'batch_size': 4, 'seq_len': 32, 'holdout': 0.2, **data})
  return moe_config.from_config_dict(config)


def text(seed, words):
  """Returns pseudo-random text of so many words, different for every seed."""
  dice = random.Random(seed)
  return f'page {seed}: ' + ' '.join(dice.choice(WORDS) for _ in range(words))


def write_corpus(folder, domain, documents, seed=0, words=(3, 120)):
  """Writes text files DOMAIN-NNN.txt of varied length; returns their texts."""
  dice, texts = random.Random(f'{domain} {seed}'), []
  folder.mkdir(parents=True, exist_ok=True)
  for number in range(documents):
    texts.append(f'{domain} ' + text(f'{seed}-{number}', dice.randint(*words)))
    (folder / f'{domain}-{number:03d}.txt').write_bytes(texts[-1].encode())
  return texts
