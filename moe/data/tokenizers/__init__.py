"""Text ↔ ids. `from_bytes` alone knows which kinds of tokenizer there are.

base           what every kind offers
sentencepiece  SentencePiece models: those that are trained here, and foreign ones
training       trains a SentencePiece model
hugging_face   tokenizer.json of Hugging Face's `tokenizers` library
"""

from collections.abc import Mapping
from pathlib import Path

from moe.data.tokenizers.base import CONFIG_FILE, FILES, MODEL_FILES, Lost, Tokenizer, must_have
from moe.data.tokenizers.sentencepiece import SentencePieceTokenizer
from moe.data.tokenizers.training import train_tokenizer
from moe.errors import of_system

__all__ = [
  'CONFIG_FILE',
  'FILES',
  'MODEL_FILES',
  'Lost',
  'Tokenizer',
  'from_bytes',
  'from_files',
  'must_have',
  'open_tokenizer',
  'train_tokenizer',
]


def open_tokenizer(path: str | Path) -> Tokenizer:
  """Opens a SentencePiece .model or a tokenizer.json, the latter with the tokenizer_config.json
  beside it if there is one.

  UserError, one line, if a file is missing or unreadable, or is no usable tokenizer.
  """
  path = Path(path)
  content = _read(path)
  beside = path.with_name(CONFIG_FILE)
  config = _read(beside) if _is_json(content) and beside.exists() else b''
  return from_bytes(content, config, f'tokenizer {path}')


def from_bytes(content: bytes, config: bytes = b'', name: str = 'tokenizer') -> Tokenizer:
  """The tokenizer in the contents of such a file and, in `config`, of its tokenizer_config.json.

  `name`: what an error calls it. UserError as in `open_tokenizer`.
  """
  if _is_json(content):
    from moe.data.tokenizers.hugging_face import HuggingFaceTokenizer

    return HuggingFaceTokenizer(content, config, name)
  return SentencePieceTokenizer(content, name)


def from_files(files: Mapping[str, bytes]) -> Tokenizer:
  """The tokenizer stored in `files`, which `Tokenizer.files` returned."""
  (content,) = (files[each] for each in MODEL_FILES if each in files)
  return from_bytes(content, files.get(CONFIG_FILE, b''), 'tokenizer')


def _is_json(content):
  # A SentencePiece model begins with the tag of its first piece, which is a newline.
  return content[:1] == b'{'


def _read(path):
  try:
    return path.read_bytes()
  except OSError as error:
    raise of_system(error, f'tokenizer {path}: {error.strerror or error}') from error
