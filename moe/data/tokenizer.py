"""SentencePiece BPE: training, loading, and text ↔ ids without loss."""

import contextlib
import functools
import io
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import sentencepiece

from moe.errors import UserError, of_system

# SentencePiece writes a space as U+2581 and decodes that back to a space, so a U+2581 of the text
# itself would come back as a space. It is escaped behind a code point that Unicode reserves as a
# noncharacter, and so is that one.
_SPACE_MARK, _ESCAPE = '\u2581', '\U0010fffe'
# SentencePiece's own mark for an unknown character:
# a text with one it leaves out of training, without a word.
_UNKNOWN_MARK = '\u2585'

# A newline is a piece of its own, with the indentation that usually follows: 8% fewer tokens on
# Python source than with the newline alone. SentencePiece takes the longest that matches.
_NEWLINES = [
  '\n',
  '\n\n',
  *('\n' + _SPACE_MARK * spaces for spaces in (2, 4, 6, 8, 12, 16, 20, 24)),
]
# Characters encoded at once: the time of BPE grows faster than the text, books are long.
_LONGEST_PART = 1_000_000


class Lost(NamedTuple):
  """Sums over documents."""

  documents: int  # that decode(encode(text)) does not give back
  # UTF-8 bytes that their tokens do not say: under unknown pieces, or left out by normalisation.
  bytes: int

  def plus(self, other: 'Lost') -> 'Lost':
    return Lost(*map(sum, zip(self, other, strict=True)))


class Tokenizer:
  """A SentencePiece model. `encode` adds neither BOS nor EOS.

  For models of `train_tokenizer`, decode(encode(text)) == text for every text that UTF-8 can hold.
  A foreign model may normalise.
  """

  def __init__(self, model: bytes, name: str = 'tokenizer'):
    """`name`: what an error calls it. UserError if it is no
    SentencePiece model with BOS and EOS.
    """
    self._model = model
    if not model:  # SentencePiece takes it in silence
      raise UserError(f'{name} is not a SentencePiece model')
    try:
      self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
      self.vocab_size: int = self._processor.get_piece_size()
    except (RuntimeError, OSError, ValueError) as error:
      raise UserError(f'{name} is not a SentencePiece model') from error
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
    """(vocab_size,) bool: True for pieces that stand for text,
    False for control pieces and the unknown one.
    """
    no_text = lambda i: (
      self._processor.is_control(i) or self._processor.is_unknown(i) or self._processor.is_unused(i)
    )
    return np.array([not no_text(i) for i in range(self.vocab_size)])

  @functools.cached_property
  def pieces(self) -> list[str]:
    """The vocabulary as SentencePiece writes it: U+2581 for a space, <0x0A> for a byte,
    <s> for a control piece.
    """
    return [self._processor.id_to_piece(i) for i in range(self.vocab_size)]

  @classmethod
  def from_file(cls, path: str | Path) -> 'Tokenizer':
    """UserError if the file is missing, unreadable or no usable model."""
    try:
      model = Path(path).read_bytes()
    except OSError as error:
      raise of_system(error, f'tokenizer {path}: {error.strerror or error}') from error
    return cls(model, name=f'tokenizer {path}')

  @classmethod
  def from_bytes(cls, model: bytes) -> 'Tokenizer':
    return cls(model)

  def to_bytes(self) -> bytes:
    """The contents of a `.model` file."""
    return self._model

  def encode(self, text: str) -> list[int]:
    return self.encode_batch([text])[0]

  def encode_batch(self, texts: Sequence[str], num_threads: int = 1) -> list[list[int]]:
    """Ids of each text; `num_threads` changes only the time."""
    return [ids_N.tolist() for ids_N in self.encode_arrays(texts, num_threads)]

  def encode_arrays(self, texts: Sequence[str], num_threads: int = 1) -> list[np.ndarray]:
    """The same as int32 (N,), a tenth of the memory."""
    parts, counts = [], []
    for text in texts:
      cut = _cut(_escape(text))
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

  def lost(self, text: str, ids_N: np.ndarray) -> 'Lost':
    """What of `text` its ids do not say. A model of `train_tokenizer` loses nothing."""
    if self.decode(ids_N) == text:
      return Lost(0, 0)
    unknown = 0
    if (ids_N == self.unknown_id).any():
      for part in _cut(_escape(text)):  # an unknown piece is spelt as its text
        spelt = self._processor.encode(part, out_type=str)
        ids = self._processor.encode(part)
        unknown += sum(len(p.encode()) for p, i in zip(spelt, ids) if i == self.unknown_id)
    # Decoding shows a sign of its own for each unknown piece.
    signs = int((ids_N == self.unknown_id).sum()) * len(self.decode([self.unknown_id]).encode())
    known = len(self.decode(ids_N).encode()) - signs
    return Lost(1, max(unknown, len(text.encode()) - known))

  def decode(self, ids: Iterable[int]) -> str:
    """Text of the ids. Control pieces give nothing, nor do ids past the vocabulary,
    which a padded model can sample.
    """
    return _unescape(self._processor.decode([int(i) for i in ids if 0 <= i < self.vocab_size]))


def must_have(tokenizer: Tokenizer | None) -> Tokenizer:
  """A run's tokenizer. UserError where it has none: it holds weights of others,
  whose tokenizer is not read here.
  """
  if tokenizer is None:
    raise UserError(
      'the run has no tokenizer: it was converted without one, and takes token ids only'
    )
  return tokenizer


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
  """Trains BPE on `texts` (all held in memory), deterministically.

  Every byte is a piece (byte fallback), so any text can be encoded; digits stand alone;
  runs of spaces merge.
  UserError if the texts cannot fill, or do not fit into, `vocab_size` pieces.
  """
  texts, written = _frequent_characters([_escape(text) for text in texts], vocab_size), io.BytesIO()
  if not any(texts):
    raise UserError('no text to train a tokenizer on')
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=written,
        model_type='bpe',
        vocab_size=vocab_size,
        character_coverage=1.0,  # of those that _frequent_characters left
        byte_fallback=True,
        normalization_rule_name='identity',
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        user_defined_symbols=_NEWLINES,
        max_sentence_length=1 << 30,  # bytes; longer ones would be left out in silence
        num_threads=1,
        minloglevel=2,
      )
  except (RuntimeError, ValueError, OSError) as error:
    raise _training_error(error, vocab_size) from error
  return Tokenizer(written.getvalue())


def _training_error(error, vocab_size):
  """SentencePiece's complaint about the vocabulary's size as one line that says what to set."""
  if limit := re.search(r'value <= (\d+)', str(error)):
    return UserError(
      f'model.vocab_size={vocab_size} is too large for this corpus: '
      f'set it (or data.vocab_size) to at most {limit[1]}, or add text'
    )
  if limit := re.search(r'smaller than required_chars\. \d+ vs (\d+)', str(error)):
    return UserError(
      f'model.vocab_size={vocab_size} is too small: '
      f'set it (or data.vocab_size) to at least {int(limit[1]) + 1}'
    )
  return UserError(
    f'no tokenizer of model.vocab_size={vocab_size} can be trained on this corpus: {error}'
  )


def _frequent_characters(texts, vocab_size):
  """Texts whose rare characters became newlines: those are spelt in bytes and need no piece.

  Rare are the last 0.05% of the text, or more where the others would take over half the room
  (Chinese), which SentencePiece's own character_coverage refuses below 98%.
  """
  counts = Counter()
  for text in texts:
    counts.update(text)
  room, wanted = max(1, (vocab_size - 256 - 3 - len(_NEWLINES)) // 2), 0.9995 * counts.total()
  rare, covered = {ord(_UNKNOWN_MARK): '\n'}, 0
  counts.pop(_UNKNOWN_MARK, None)
  for rank, (character, count) in enumerate(
    sorted(counts.items(), key=lambda item: (-item[1], item[0]))
  ):
    if rank >= room or covered >= wanted:
      rare[ord(character)] = '\n'
    covered += count
  return [text.translate(rare) for text in texts]


def _escape(text):
  if _SPACE_MARK not in text and _ESCAPE not in text:
    return text
  return text.replace(_ESCAPE, _ESCAPE + '0').replace(_SPACE_MARK, _ESCAPE + '1')


def _unescape(text):
  return (
    text
    if _ESCAPE not in text
    else text.replace(_ESCAPE + '1', _SPACE_MARK).replace(_ESCAPE + '0', _ESCAPE)
  )


def _cut(text):
  """Parts of at most _LONGEST_PART characters, cut before newlines,
  where no piece of ours crosses.
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
