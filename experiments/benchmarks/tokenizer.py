"""Encoding with a tokenizer.json, ours beside Hugging Face's library, on the built-in corpus."""

import os
from collections.abc import Iterable
from unittest import mock

from experiments.benchmarks.timing import compare
from moe.data import builtin
from moe.data.tokenizers import from_bytes
from moe.errors import UserError

BOS, EOS = '<｜begin▁of▁sentence｜>', '<｜end▁of▁sentence｜>'
_CHARACTERS = 2_000_000
# At least 0.8 of the library's speed.
_BAR = 1 / 0.8


def suite(rounds: int) -> list[dict]:
  """Times the encoding of whole documents, with as many threads on both sides."""
  texts, size = [], 0
  for document in builtin.documents():
    texts.append(document.text)
    size += len(document.text)
    if size >= _CHARACTERS:
      break
  content = train_like_deepseek(texts[::10], 4096)
  tokenizer, library = from_bytes(content), library_of(content)
  threads = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
  tokens = sum(map(len, tokenizer.encode_arrays(texts, threads)))

  def theirs():
    with mock.patch.dict(os.environ, {'TOKENIZERS_PARALLELISM': 'true'}):
      return [encoding.ids for encoding in library.encode_batch(texts, add_special_tokens=False)]

  ours = lambda: tokenizer.encode_batch(texts, threads)
  name = f'encode_batch, tokenizer.json ÷ the library, {threads} threads'
  return [compare(name, ours, theirs, rounds, tokens, _BAR)]


def train_like_deepseek(texts: Iterable[str], vocab_size: int) -> bytes:
  """A tokenizer.json like deepseek-llm's: byte-level BPE, its pre-tokenizer, `vocab_size` pieces,
  then its BOS and EOS.

  After them comes one of its added tokens that are not control pieces: a letter that the byte-level
  alphabet has for a byte that no UTF-8 text contains. UserError without the library.
  """
  try:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, trainers
    from tokenizers import pre_tokenizers as steps
  except ImportError as error:
    raise UserError("this needs Hugging Face's tokenizers: pip install '.[convert]'") from error
  library = Tokenizer(models.BPE())
  patterns = ['[\r\n]', r'\s?\p{L}+', r'\s?\p{P}+', '[一-龥ࠀ-一가-퟿]+']
  library.pre_tokenizer = steps.Sequence(
    [
      *(steps.Split(Regex(pattern), 'isolated') for pattern in patterns),
      steps.Digits(individual_digits=True),
      steps.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )
  library.decoder = decoders.ByteLevel()
  # In deepseek-llm's, too, this byte, which UTF-8 never uses, has no piece.
  alphabet = sorted(set(steps.ByteLevel.alphabet()) - {'ø'})
  trainer = trainers.BpeTrainer(
    vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False
  )
  library.train_from_iterator(texts, trainer)
  library.add_special_tokens([BOS, EOS])
  library.add_tokens([AddedToken('ø', normalized=False)])
  return library.to_str(pretty=True).encode()


def library_of(content: bytes):
  """The library's own tokenizer, set to take what spells a special token as text, as ours does."""
  import tokenizers

  library = tokenizers.Tokenizer.from_str(content.decode())
  library.encode_special_tokens = True
  return library
