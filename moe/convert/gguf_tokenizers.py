"""A run's tokenizer in GGUF's terms, so that llama.cpp's own encoder gives the same ids.

llama.cpp has an encoder for byte-level BPE, which is told the name of a pre-tokenizer, and one for
SentencePiece's BPE. A tokenizer that neither of them can match is refused. If only rare texts
differ, a note says so.
"""

import itertools
import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sentencepiece import sentencepiece_model_pb2

from moe.data.tokenizers import Tokenizer
from moe.data.tokenizers.sentencepiece import SPACE_MARK
from moe.errors import UserError

if TYPE_CHECKING:
  import gguf

# SentencePiece's numbers for kinds of pieces, which GGUF uses too.
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5
_HAN = '[一-龥ࠀ-一가-퟿]+'
# By GGUF's name of a pre-tokenizer: what each Split of the tokenizer.json isolates, in order. A
# split into single digits and one into bytes follow. deepseek-llm lists every letter that has a
# case; only the beginning of that list is here.
_SPLITS = {
  'deepseek-llm': (
    *('[\r\n]', r'\s?[A-Za-zµÀ-ÖØ-öø-ƺ'),
    *(r'\s?[!-/:-~！-／：-～‘-‟　-。]+', r'\s+$', _HAN),
  ),
  'deepseek-coder': ('[\r\n]', r'\s?\p{L}+', r'\s?\p{P}+', _HAN),
}


def add(writer: 'gguf.GGUFWriter', tokenizer: Tokenizer | None) -> list[str]:
  """Adds a tokenizer's keys to a GGUF file and returns notes for the user, a line each.

  UserError for what GGUF cannot express.
  """
  if tokenizer is None:
    writer.add_tokenizer_model('none')
    return ['the run has no tokenizer, and neither has the file: it takes token ids only']
  if tokenizer.file_name == 'tokenizer.json':
    tokens, types, notes = _add_byte_level(writer, tokenizer)
  else:
    tokens, types, notes = _add_sentencepiece(writer, tokenizer)
  writer.add_token_list(tokens)
  writer.add_token_types(types)
  writer.add_bos_token_id(tokenizer.bos_id)
  writer.add_eos_token_id(tokenizer.eos_id)
  # A document begins with BOS, as everywhere in this repository.
  writer.add_add_bos_token(True)
  writer.add_add_eos_token(False)
  if isinstance(template := tokenizer.settings.get('chat_template'), str):
    writer.add_chat_template(template)
  return notes


def _add_byte_level(writer, tokenizer):
  """Adds a tokenizer.json. Returns the pieces, their types and notes."""
  described = json.loads(tokenizer.to_bytes())
  model = described['model']
  for key in ('byte_fallback', 'ignore_merges', 'fuse_unk', 'unk_token'):
    if model.get(key):
      raise _refused(f'model.{key}={model[key]!r}')
  normalizer = described.get('normalizer')
  if normalizer and normalizer.get('normalizers') != []:
    raise _refused(f'a normalizer, {normalizer.get("type")}')
  pre = _pre_tokenizer(described)
  notes = []
  added = {each['id']: each for each in described.get('added_tokens', [])}
  vocabulary = {i: piece for piece, i in model['vocab'].items()}
  tokens, types = [], []
  for i in range(tokenizer.vocab_size):
    if i in added:
      tokens.append(added[i]['content'])
      types.append(_USER_DEFINED if tokenizer.is_text[i] else _CONTROL)
      for key in ('lstrip', 'rstrip', 'single_word'):
        if tokenizer.is_text[i] and added[i].get(key):
          raise _refused(f'the added token {added[i]["content"]!r} with {key}')
    elif i in vocabulary:
      tokens.append(vocabulary[i])
      types.append(_NORMAL if tokenizer.is_text[i] else _CONTROL)
    else:
      tokens.append(f'[PAD{i}]')
      types.append(_UNUSED)
  if pre == 'deepseek-llm' and any(
    re.search('[0-9].*[0-9]', piece) for piece in vocabulary.values()
  ):
    notes.append('pieces of several digits: llama.cpp joins digits, tokenizer.json does not')
  writer.add_tokenizer_model('gpt2')
  writer.add_tokenizer_pre(pre)
  merges = (each if isinstance(each, str) else ' '.join(each) for each in model['merges'])
  writer.add_token_merges(list(merges))
  return tokens, types, notes


def _pre_tokenizer(described):
  """GGUF's name of a tokenizer.json's pre-tokenizer. UserError if it has none."""
  step = described.get('pre_tokenizer') or {}
  steps = step.get('pretokenizers', [step])
  splits = [each for each in steps if each.get('type') == 'Split']
  patterns = [each['pattern'].get('Regex', '') for each in splits]
  plain = all(each['behavior'] == 'Isolated' and not each['invert'] for each in splits)
  rest = [{k: v for k, v in each.items() if k != 'trim_offsets'} for each in steps[len(splits) :]]
  at_end = [
    {'type': 'Digits', 'individual_digits': True},
    {'type': 'ByteLevel', 'add_prefix_space': False, 'use_regex': False},
  ]
  for name, expected in _SPLITS.items():
    if plain and rest == at_end and _same(patterns, expected):
      return name
  raise _refused(
    f'a pre-tokenizer that llama.cpp does not have as {" or ".join(_SPLITS)}', 'pre_tokenizer'
  )


def _same(patterns, expected):
  return len(patterns) == len(expected) and all(
    here == there or (there.endswith('ƺ') and here.startswith(there))
    for here, there in zip(patterns, expected, strict=True)
  )


def _add_sentencepiece(writer, tokenizer):
  """Adds a tokenizer.model. Returns the pieces, their types and notes."""
  proto = sentencepiece_model_pb2.ModelProto.FromString(tokenizer.to_bytes())
  trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
  for is_so, words in (
    (trainer.model_type != trainer.BPE, 'it is no BPE'),
    (not trainer.byte_fallback, 'it has no byte fallback'),
    (trainer.treat_whitespace_as_suffix, 'a space ends a word'),
    (normalizer.precompiled_charsmap, f'it normalises text by {normalizer.name}'),
    (normalizer.remove_extra_whitespaces, 'it leaves out spaces'),
    (not normalizer.escape_whitespaces, 'it does not escape spaces'),
  ):
    if is_so:
      raise UserError(
        f'the tokenizer cannot be carried by GGUF: {words}; '
        'a SentencePiece BPE with byte fallback that changes no text can'
      )
  tokens = [
    # llama.cpp looks for user-defined pieces in the text itself, before it escapes spaces.
    each.piece.replace(SPACE_MARK, ' ') if each.type == _USER_DEFINED else each.piece
    for each in proto.pieces
  ]
  types = [each.type for each in proto.pieces]
  writer.add_tokenizer_model('llama')
  writer.add_tokenizer_pre('default')
  writer.add_token_scores([each.score for each in proto.pieces])
  writer.add_add_space_prefix(normalizer.add_dummy_prefix)
  writer.add_unk_token_id(trainer.unk_id)
  notes = ['a U+2581 of a text, which is escaped here, is a space to llama.cpp']
  symbols = [piece for piece, kind in zip(tokens, types, strict=True) if kind == _USER_DEFINED]
  if pair := _overlapping(symbols):
    notes.append(
      f'where {pair[0]!r} and {pair[1]!r} overlap in a text, llama.cpp takes the longer one, '
      'the tokenizer the first one: the text of the ids is the same, the ids are not; '
      'give it token ids where that matters'
    )
  return tokens, types, notes


def _overlapping(symbols: Sequence[str]) -> tuple[str, str] | None:
  """Two symbols of which an end of the first begins the second, and the second is no shorter. None
  without such a pair.
  """
  for first, second in itertools.permutations(symbols, 2):
    ends = (first[i:] for i in range(1, len(first)))
    if len(second) >= len(first) and any(second.startswith(end) for end in ends):
      return first, second
  return None


def _refused(words, key='model'):
  return UserError(
    f'the tokenizer cannot be carried by GGUF: tokenizer.json has {words} ({key}); '
    'a byte-level BPE with the pre-tokenizer of DeepSeek LLM or DeepSeek Coder can'
  )
