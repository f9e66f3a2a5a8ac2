"""Reads and writes the tokenizer of a Hugging Face checkpoint: its files, byte for byte."""

from pathlib import Path

from moe import files
from moe.data.tokenizers import Tokenizer, open_tokenizer

# If a folder has both, the first is read, as Hugging Face's own programs do.
_NAMES = ('tokenizer.json', 'tokenizer.model')


def find(source: Path) -> tuple[Tokenizer | None, str]:
  """(the tokenizer of a folder, '') or (None, a note that it has none). UserError if the tokenizer
  cannot be read.
  """
  for name in _NAMES:
    if (source / name).exists():
      return open_tokenizer(source / name), ''
  return None, (
    f'{source} has no {" and no ".join(_NAMES)}: '
    'the run has no tokenizer: programs that take text refuse it, token ids work'
  )


def write(tokenizer: Tokenizer | None, target: Path) -> dict[str, int]:
  """Writes a run's tokenizer into a folder and returns its token ids under config.json's keys."""
  if tokenizer is None:
    return {}
  for name, content in tokenizer.files().items():
    files.replace(target / name, content)
  return {'bos_token_id': tokenizer.bos_id, 'eos_token_id': tokenizer.eos_id}
