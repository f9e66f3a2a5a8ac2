"""The interface of all tokenizers, and the files that store one. N ids of a text, V pieces."""

import abc
import functools
import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from moe.errors import UserError

# A tokenizer is stored in one of these.
MODEL_FILES = ('tokenizer.model', 'tokenizer.json')
# Hugging Face's file beside tokenizer.json, kept as it is: it names BOS, EOS and a chat template.
CONFIG_FILE = 'tokenizer_config.json'
FILES = (*MODEL_FILES, CONFIG_FILE)


class Lost(NamedTuple):
  """What tokens lose of their text, summed over documents."""

  documents: int  # those that decode(encode(text)) does not give back
  # UTF-8 bytes missing from their tokens: under unknown pieces, or left out by normalisation.
  bytes: int

  def plus(self, other: 'Lost') -> 'Lost':
    return Lost(*map(sum, zip(self, other, strict=True)))


class Tokenizer(abc.ABC):
  """Text ↔ ids. Encoding adds neither BOS nor EOS: moe/data/batches.py does, once a document.

  No text is encoded to a control piece: the spelling of BOS, say, is encoded like any other text.
  """

  # One of MODEL_FILES.
  file_name: str
  # The largest id + 1. The model may have more rows: they are padding.
  vocab_size: int
  bos_id: int
  eos_id: int
  # Contents of CONFIG_FILE; empty where there is none.
  tokenizer_config: bytes = b''

  @property
  @abc.abstractmethod
  def is_text(self) -> np.ndarray:
    """is_text_V bool: False for control pieces, the unknown piece and ids that have no piece."""

  @property
  @abc.abstractmethod
  def pieces(self) -> list[str]:
    """The vocabulary as SentencePiece writes it: U+2581 for a space, <0x0A> for a byte,
    <s> for a control piece.
    """

  @property
  @abc.abstractmethod
  def piece_bytes(self) -> list[bytes]:
    """The UTF-8 bytes that each piece stands for; empty where `is_text` is False."""

  @abc.abstractmethod
  def to_bytes(self) -> bytes:
    """The contents of the file `file_name`, byte for byte as it was opened."""

  @abc.abstractmethod
  def encode_arrays(self, texts: Sequence[str], num_threads: int = 1) -> list[np.ndarray]:
    """Ids of each text, int32 (N,); `num_threads` changes only the time."""

  @abc.abstractmethod
  def offsets(self, text: str) -> list[tuple[int, int]]:
    """(begin, end) in characters of `text` for each id of `encode(text)`.

    Where pieces share a character, either each of them spans it or only the last one does, as the
    library has it.
    """

  @abc.abstractmethod
  def decode(self, ids: Iterable[int]) -> str:
    """Text of the ids. Control pieces give nothing, nor do ids past the vocabulary."""

  @abc.abstractmethod
  def lost(self, text: str, ids_N: np.ndarray) -> Lost:
    """What the ids lose of `text`."""

  def encode(self, text: str) -> list[int]:
    return self.encode_batch([text])[0]

  def encode_batch(self, texts: Sequence[str], num_threads: int = 1) -> list[list[int]]:
    """As `encode_arrays`, but as lists, in ten times the memory."""
    return [ids_N.tolist() for ids_N in self.encode_arrays(texts, num_threads)]

  def files(self) -> dict[str, bytes]:
    """{name: contents} of all files of a copy; `from_files` reads it back."""
    return {self.file_name: self.to_bytes()} | (
      {CONFIG_FILE: self.tokenizer_config} if self.tokenizer_config else {}
    )

  @functools.cached_property
  def sha256(self) -> str:
    """The hash of what decides the ids of documents: the model file and, for tokenizer.json, BOS
    and EOS, which another file may name.
    """
    ends = f'{self.bos_id} {self.eos_id}'.encode() if self.file_name == 'tokenizer.json' else b''
    return hashlib.sha256(self.to_bytes() + ends).hexdigest()

  @functools.cached_property
  def settings(self) -> dict:
    """The JSON object in CONFIG_FILE, with `chat_template` among its keys; {} without the file."""
    return json.loads(self.tokenizer_config) if self.tokenizer_config else {}


def must_have(tokenizer: Tokenizer | None) -> Tokenizer:
  """A run's tokenizer. UserError if the run has none: its weights were converted without one."""
  if tokenizer is None:
    raise UserError(
      'the run has no tokenizer: it was converted without one, and takes token ids only'
    )
  return tokenizer
