"""SentencePiece models: text ↔ ids, without loss for models of `training.train_tokenizer`."""

import functools
import re
from collections.abc import Iterable, Sequence

import numpy as np
import sentencepiece
from sentencepiece import sentencepiece_pb2

from moe.data.tokenizers.base import Lost, Tokenizer
from moe.errors import UserError

# SentencePiece writes a space as U+2581 and decodes that back to a space, so a U+2581 of the text
# itself would come back as a space. It is escaped behind a code point that Unicode reserves as a
# noncharacter, and that code point is escaped, too.
SPACE_MARK, _ESCAPE = '\u2581', '\U0010fffe'
# Characters encoded at once: the time of BPE grows faster than the text, and books are long.
_LONGEST_PART = 1_000_000


class SentencePieceTokenizer(Tokenizer):
  """A SentencePiece model.

  With one from `train_tokenizer`, decode(encode(text)) == text for every text that UTF-8 can hold.
  A foreign model may normalise.
  """

  file_name = 'tokenizer.model'

  def __init__(self, model: bytes, name: str = 'tokenizer'):
    """`name`: what an error calls it. UserError unless `model` is a
    SentencePiece model with BOS and EOS.
    """
    self._model = model
    not_one = f'{name} is not a SentencePiece model, nor JSON of a Hugging Face tokenizer'
    if not model:  # SentencePiece takes it in silence
      raise UserError(not_one)
    try:
      self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
      self.vocab_size: int = self._processor.get_piece_size()
    except (RuntimeError, OSError, ValueError) as error:
      raise UserError(not_one) from error
    self.bos_id: int = self._processor.bos_id()
    self.eos_id: int = self._processor.eos_id()
    self.unknown_id: int = self._processor.unk_id()
    for kind, token in (('BOS', self.bos_id), ('EOS', self.eos_id)):
      if token < 0:
        raise UserError(
          f'{name} has no {kind} piece: documents need one, choose a model trained with it'
        )

  @functools.cached_property
  def is_text(self) -> np.ndarray:
    no_text = lambda i: (
      self._processor.is_control(i) or self._processor.is_unknown(i) or self._processor.is_unused(i)
    )
    return np.array([not no_text(i) for i in range(self.vocab_size)])

  @functools.cached_property
  def pieces(self) -> list[str]:
    return [self._processor.id_to_piece(i) for i in range(self.vocab_size)]

  @functools.cached_property
  def piece_bytes(self) -> list[bytes]:
    """For U+2581 and U+10FFFE of a text these are the bytes of their escapes."""
    return [
      bytes_of(piece) if is_text else b'' for piece, is_text in zip(self.pieces, self.is_text)
    ]

  def to_bytes(self) -> bytes:
    return self._model

  def encode_arrays(self, texts: Sequence[str], num_threads: int = 1) -> list[np.ndarray]:
    parts, counts = [], []
    for text in texts:
      cut = _cut(escape(text))
      parts += cut
      counts.append(len(cut))
    encoded = self._encode_parts(parts, num_threads)
    return [np.concatenate([next(encoded) for _ in range(count)]) for count in counts]

  def _encode_parts(self, parts, num_threads):
    begin = 0
    while begin < len(parts):
      end, size = begin, 0
      while end < len(parts) and (end == begin or size + len(parts[end]) <= 4 * _LONGEST_PART):
        size += len(parts[end])
        end += 1
      for ids in self._processor.encode(parts[begin:end], num_threads=num_threads):
        yield np.array(ids, np.int32)
      begin = end

  def offsets(self, text: str) -> list[tuple[int, int]]:
    # The character that each byte of the escaped text comes from, and the end.
    origin = [i for i, x in enumerate(text) for _ in range(len(escape(x).encode()))] + [len(text)]
    spans, place = [], 0
    for part in _cut(escape(text)):
      encoded = self._processor.encode(part, out_type='serialized_proto')
      for piece in sentencepiece_pb2.SentencePieceText.FromString(encoded).pieces:
        begin, end = place + piece.begin, place + piece.end
        # A piece may end within the escape of a character.
        within = end > begin and origin[end] == origin[end - 1]
        spans.append((origin[begin], origin[end] + within))
      place += len(part.encode())
    return spans

  def lost(self, text: str, ids_N: np.ndarray) -> Lost:
    """A model of `train_tokenizer` loses nothing."""
    if self.decode(ids_N) == text:
      return Lost(0, 0)
    unknown = 0
    if (ids_N == self.unknown_id).any():
      for part in _cut(escape(text)):  # an unknown piece is spelt as its text
        spelt = self._processor.encode(part, out_type=str)
        ids = self._processor.encode(part)
        unknown += sum(len(p.encode()) for p, i in zip(spelt, ids) if i == self.unknown_id)
    # Decoding writes a placeholder for each unknown piece.
    signs = int((ids_N == self.unknown_id).sum()) * len(self.decode([self.unknown_id]).encode())
    known = len(self.decode(ids_N).encode()) - signs
    return Lost(1, max(unknown, len(text.encode()) - known))

  def decode(self, ids: Iterable[int]) -> str:
    return _unescape(self._processor.decode([int(i) for i in ids if 0 <= i < self.vocab_size]))


def bytes_of(piece: str, space: str = SPACE_MARK) -> bytes:
  """The UTF-8 bytes that a piece of text stands for, as SentencePiece writes pieces."""
  if re.fullmatch('<0x[0-9A-F]{2}>', piece):
    return bytes([int(piece[3:5], 16)])
  return piece.replace(space, ' ').encode()


def escape(text: str) -> str:
  """`text` as SentencePiece gets it: U+2581 and the escape itself are escaped."""
  if SPACE_MARK not in text and _ESCAPE not in text:
    return text
  return text.replace(_ESCAPE, _ESCAPE + '0').replace(SPACE_MARK, _ESCAPE + '1')


def _unescape(text):
  return (
    text
    if _ESCAPE not in text
    else text.replace(_ESCAPE + '1', SPACE_MARK).replace(_ESCAPE + '0', _ESCAPE)
  )


def _cut(text):
  """Parts of at most _LONGEST_PART characters, cut before a newline if there is one:
  no piece of a model trained here spans such a cut.
  """
  parts, begin = [], 0
  while len(text) - begin > _LONGEST_PART:
    end = text.rfind('\n', begin + 1, begin + _LONGEST_PART)
    while end > begin and text[end - 1] == '\n':
      end -= 1
    end = end if end > begin else begin + _LONGEST_PART
    parts.append(text[begin:end])
    begin = end
  return [*parts, text[begin:]]
