"""The tokenizer of a Hugging Face checkpoint, in and out.

A further kind of file is a branch of `find` and of `write`.
"""

from pathlib import Path

from moe import files
from moe.data.tokenizer import Tokenizer

_SENTENCEPIECE, _HF = 'tokenizer.model', 'tokenizer.json'


def find(source: Path) -> tuple[Tokenizer | None, str]:
  """The tokenizer of a folder, and what there is to tell of it.
  UserError for one that cannot be read.
  """
  if (source / _SENTENCEPIECE).exists():
    return Tokenizer.from_file(source / _SENTENCEPIECE), ''
  without = 'the run has no tokenizer: programs that take text refuse it, token ids work'
  if (source / _HF).exists():
    return None, f'{source / _HF} is of a kind that is not read here; {without}'
  return None, f'{source} has no {_SENTENCEPIECE}; {without}'


def write(tokenizer: Tokenizer | None, target: Path) -> dict[str, int]:
  """Writes a run's tokenizer into a folder for others, and returns its token ids as config.json
  names them.
  """
  if tokenizer is None:
    return {}
  files.replace(target / _SENTENCEPIECE, tokenizer.to_bytes())
  return {'bos_token_id': tokenizer.bos_id, 'eos_token_id': tokenizer.eos_id}
