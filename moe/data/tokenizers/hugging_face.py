"""tokenizer.json of Hugging Face's `tokenizers` library, which does all encoding and decoding.

This module reads from it only what a language model has to know: which bytes a piece stands for,
and which tokens are BOS and EOS.
"""

import functools
import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from moe.data.tokenizers.base import CONFIG_FILE, Lost, Tokenizer
from moe.data.tokenizers.sentencepiece import SPACE_MARK, bytes_of
from moe.errors import UserError, one_line

# BOS and EOS where neither tokenizer_config.json nor the post-processor names them: the first of
# these that the tokenizer has.
_WELL_KNOWN = {
  'bos_token': (
    *('<｜begin▁of▁sentence｜>', '<s>', '<bos>', '<|begin_of_text|>', '<|startoftext|>'),
    '<|endoftext|>',
  ),
  'eos_token': (*('<｜end▁of▁sentence｜>', '</s>', '<eos>', '<|end_of_text|>', '<|endoftext|>'),),
}
# Characters that a thread encodes at once: the library takes some 130 bytes of memory for each.
_CHUNK = 1_000_000
# Where a longer text may be cut: GPT-2's pre-tokenizer, and those modelled on it,
# never join a letter and a newline.
_BOUNDARY = re.compile(r'(?<=[^\W_])(?=\n[^\W_])')


class HuggingFaceTokenizer(Tokenizer):
  """A byte-level BPE, or a BPE or Unigram that writes spaces as SentencePiece does.

  BOS and EOS are those that tokenizer_config.json names, else those of the post-processor, else
  special tokens with well-known names.
  """

  file_name = 'tokenizer.json'

  def __init__(self, content: bytes, config: bytes = b'', name: str = 'tokenizer'):
    """`content`, `config`: the contents of tokenizer.json and tokenizer_config.json.

    `name`: what an error calls them. UserError if they are damaged, name no BOS and EOS, or are of
    a kind whose pieces do not say which bytes they stand for.
    """
    # The library's own threads do not survive a fork, and it warns of that on stderr: the threads
    # of `encode_arrays` take their place.
    os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')
    try:
      import tokenizers
    except ImportError as error:
      raise UserError(
        f"{name} needs the library of Hugging Face's tokenizers: pip install '.[convert]'"
      ) from error
    self._content, self.tokenizer_config = content, config
    description = _object(content, name)
    settings = _object(config, f'{name}: the {CONFIG_FILE} beside it') if config else {}
    try:
      self._library = tokenizers.Tokenizer.from_str(content.decode())
    # The library raises no narrower class.
    except Exception as error:
      raise UserError(
        f'{name} is no tokenizer.json that the tokenizers library reads: {one_line(error)}'
      ) from error
    # The file keeps the settings of its last use, which would truncate and pad documents.
    self._library.no_truncation()
    self._library.no_padding()
    self._bytes_of, self._is_byte_level = _reading(description, name)
    names = {kind: _find(kind, description, settings, name) for kind in _WELL_KNOWN}
    for kind, token in names.items():
      if self._library.token_to_id(token) is None:
        raise UserError(f'{name} has no token {token!r}, its {kind}')
    added = self._library.get_added_tokens_decoder().values()
    special = {token.content for token in added if token.special}
    # If the file does not mark BOS and EOS as special, a text could spell them.
    self._library.add_special_tokens([token for token in names.values() if token not in special])
    # A special token's spelling within a text is encoded as text.
    self._library.encode_special_tokens = True
    self.bos_id, self.eos_id = map(self._library.token_to_id, names.values())
    self.vocab_size = max(self._library.get_vocab(with_added_tokens=True).values()) + 1
    self._added = self._library.get_added_tokens_decoder()
    self._unknown_id = _unknown_id(description['model'], self._library)

  @functools.cached_property
  def is_text(self) -> np.ndarray:
    is_text_V = np.zeros(self.vocab_size, bool)
    is_text_V[list(self._library.get_vocab(with_added_tokens=True).values())] = True
    is_text_V[[i for i, token in self._added.items() if token.special]] = False
    if self._unknown_id is not None:
      is_text_V[self._unknown_id] = False
    return is_text_V

  @functools.cached_property
  def pieces(self) -> list[str]:
    written = []
    for i, (said, is_text) in enumerate(zip(self.piece_bytes, self.is_text)):
      if not is_text:
        written.append(self._library.id_to_token(i) or '')
        continue
      try:
        written.append(said.decode().replace(' ', SPACE_MARK))
      except UnicodeDecodeError:
        written.append(''.join(f'<0x{byte:02X}>' for byte in said))
    return written

  @functools.cached_property
  def piece_bytes(self) -> list[bytes]:
    """An added token stands for its own spelling. The first piece of a text may begin with a space
    that the text does not have.
    """
    found = []
    for i, is_text in enumerate(self.is_text):
      if not is_text:
        found.append(b'')
      elif i in self._added:
        found.append(self._added[i].content.encode())
      else:
        found.append(self._bytes_of(self._library.id_to_token(i)))
    return found

  def to_bytes(self) -> bytes:
    return self._content

  def encode_arrays(self, texts: Sequence[str], num_threads: int = 1) -> list[np.ndarray]:
    parts = [self._parts(text) for text in texts]
    chunks = list(_chunks([part for each in parts for part in each], num_threads))
    if num_threads > 1 and len(chunks) > 1:
      with ThreadPoolExecutor(num_threads) as pool:
        encoded = [ids_N for chunk in pool.map(self._encode, chunks) for ids_N in chunk]
    else:
      encoded = [ids_N for chunk in chunks for ids_N in self._encode(chunk)]
    encoded = iter(encoded)
    return [np.concatenate([next(encoded) for _ in each]) for each in parts]

  def offsets(self, text: str) -> list[tuple[int, int]]:
    spans, begin = [], 0
    for part in self._parts(text):
      broken = [part]
      if self._has_control(self._encode_whole([part])[0]):
        broken = self._broken(part)
      for each in broken:
        encoding = self._library.encode(each, add_special_tokens=False)
        spans += [(begin + first, begin + last) for first, last in encoding.offsets]
        begin += len(each)
    return spans

  def decode(self, ids: Iterable[int]) -> str:
    known = [int(i) for i in ids if 0 <= i < self.vocab_size]
    return self._library.decode(known, skip_special_tokens=True)

  def lost(self, text: str, ids_N: np.ndarray) -> Lost:
    if self.decode(ids_N) == text:
      return Lost(0, 0)
    unknown = 0
    if self._unknown_id is not None and (ids_N == self._unknown_id).any():
      spans = {
        span for i, span in zip(ids_N, self.offsets(text), strict=True) if i == self._unknown_id
      }
      unknown = sum(len(text[begin:end].encode()) for begin, end in spans)
    known = sum(len(self.piece_bytes[i]) for i in ids_N)
    return Lost(1, max(unknown, len(text.encode()) - known))

  def _parts(self, text):
    """The text in parts of _CHUNK characters and more, cut only where that changes no ids."""
    parts, begin = [], 0
    while self._is_byte_level and len(text) - begin > _CHUNK:
      found = _BOUNDARY.search(text, begin + _CHUNK)
      if not found:
        break
      parts.append(text[begin : found.start()])
      begin = found.start()
    return [*parts, text[begin:]]

  def _encode(self, parts):
    """Ids of each part, without control pieces."""
    encoded = self._encode_whole(parts)
    for number, ids_N in enumerate(encoded):
      if self._has_control(ids_N):
        encoded[number] = np.concatenate(self._encode_whole(self._broken(parts[number])))
    return encoded

  def _encode_whole(self, parts):
    encoded = self._library.encode_batch_fast(parts, add_special_tokens=False)
    return [np.array(encoding.ids, np.int32) for encoding in encoded]

  def _has_control(self, ids_N):
    """Whether a text's own letters became a control piece: Unigram uses any piece they spell."""
    return bool(self._is_control_V[ids_N].any())

  def _broken(self, part):
    """The part cut up so that none of the strings spells a control piece."""
    spelt = sorted(
      (self._library.id_to_token(i) for i in np.flatnonzero(self._is_control_V)), key=len
    )
    inside = '|'.join(f'(?<={re.escape(x[0])})(?={re.escape(x[1:])})' for x in spelt if len(x) > 1)
    return re.split(inside, part)

  @functools.cached_property
  def _is_control_V(self):
    is_control_V = np.zeros(self.vocab_size, bool)
    is_control_V[[i for i, token in self._added.items() if token.special]] = True
    if self._unknown_id is not None:
      is_control_V[self._unknown_id] = False
    return is_control_V


def _object(content, name):
  """The JSON object in `content`; UserError if it is damaged."""
  try:
    found = json.loads(content)
  except (ValueError, RecursionError) as error:
    raise UserError(f'{name} is damaged: not JSON ({one_line(error)})') from error
  if not isinstance(found, dict):
    raise UserError(f'{name} is damaged: not a JSON object')
  return found


def _reading(description, name) -> tuple[Callable[[str], bytes], bool]:
  """(a function from a piece to its bytes, whether the tokenizer is a byte-level BPE)."""
  model = description['model']
  kind = model.get('type') or ('BPE' if 'merges' in model else '?')
  decoders = _flat(description.get('decoder'), 'decoders')
  types = {each['type'] for each in decoders}
  if kind not in ('BPE', 'Unigram'):
    raise UserError(
      f'{name} is a {kind}, whose pieces do not say which spaces and letters they were made of: '
      'choose a BPE or a Unigram'
    )
  if model.get('dropout'):
    raise UserError(
      f'{name} has a dropout of {model["dropout"]}: the same text gets different ids each time'
    )
  if affix := model.get('end_of_word_suffix') or model.get('continuing_subword_prefix'):
    raise UserError(
      f'{name} marks words by {affix!r}, which does not say where the spaces are: choose another'
    )
  if 'ByteLevel' in types:
    return _byte_level, True
  space = [each.get('replacement', SPACE_MARK) for each in decoders if each['type'] == 'Metaspace']
  space += [
    each['pattern'].get('String')
    for each in decoders
    if each['type'] == 'Replace' and each.get('content') == ' '
  ]
  if not space:
    raise UserError(
      f'{name} has the decoder {", ".join(sorted(types)) or "none"}, which does not say which '
      'bytes a piece stands for: choose a tokenizer with ByteLevel, Metaspace or Replace by a space'
    )
  return functools.partial(bytes_of, space=space[0]), False


def _byte_level(piece):
  """The bytes of a piece, as the library decodes it: one with a character outside the alphabet
  stands for its own spelling.
  """
  try:
    return bytes(_BYTE_OF[character] for character in piece)
  except KeyError:
    return piece.encode()


def _alphabet():
  """GPT-2's {character: byte}: printable bytes are themselves, the others lie from U+0100 on."""
  itself = [*range(ord('!'), ord('~') + 1), *range(ord('¡'), ord('¬') + 1), *range(ord('®'), 256)]
  others = [byte for byte in range(256) if byte not in itself]
  return {chr(byte): byte for byte in itself} | {
    chr(256 + rank): byte for rank, byte in enumerate(others)
  }


_BYTE_OF = _alphabet()


def _find(kind, description, settings, name):
  """The spelling of BOS or EOS."""
  named = settings.get(kind)
  named = named.get('content') if isinstance(named, dict) else named
  special = {each['content'] for each in description.get('added_tokens', []) if each.get('special')}
  well_known = [token for token in _WELL_KNOWN[kind] if token in special]
  if named is not None and not isinstance(named, str):
    raise UserError(f'{name}: {kind} of {CONFIG_FILE} is {named!r}, not a token')
  if found := named or _of_post_processor(kind, description) or next(iter(well_known), None):
    return found
  raise UserError(
    f'{name} does not say which token is its {kind}: write {CONFIG_FILE} beside it with '
    f'{{"bos_token": …, "eos_token": …}}'
  )


def _of_post_processor(kind, description):
  """The token that the post-processor puts before (BOS) or after (EOS) a text; None without one."""
  for processor in _flat(description.get('post_processor'), 'processors'):
    if processor['type'] in ('RobertaProcessing', 'BertProcessing'):
      return processor['cls' if kind == 'bos_token' else 'sep'][0]
    if processor['type'] == 'TemplateProcessing':
      single = processor['single']
      place = next(i for i, each in enumerate(single) if 'Sequence' in each)
      side = single[:place] if kind == 'bos_token' else single[place + 1 :]
      if side:
        return side[0]['SpecialToken']['id']
  return None


def _unknown_id(model, library):
  if isinstance(model.get('unk_id'), int):
    return model['unk_id']
  return library.token_to_id(model['unk_token']) if model.get('unk_token') else None


def _flat(step, key):
  """The steps within a step of the library's pipeline: a Sequence's, or itself; [] for none."""
  if not step:
    return []
  if step['type'] == 'Sequence':
    return [each for inner in step[key] for each in _flat(inner, key)]
  return [step]


def _chunks(parts, num_threads):
  """Groups consecutive parts into chunks of about equal length, enough of them for every thread."""
  size = min(_CHUNK, max(1, sum(map(len, parts)) // (4 * num_threads)))
  chunk, length = [], 0
  for part in parts:
    chunk.append(part)
    length += len(part)
    if length >= size:
      yield chunk
      chunk, length = [], 0
  if chunk:
    yield chunk
