"""The tokenizer of a Hugging Face checkpoint, in and out: its files, byte for byte."""

from pathlib import Path

from moe import files
from moe.data.tokenizers import Tokenizer, open_tokenizer

# A folder that has both means the first: that is what Hugging Face's own programs read.
_NAMES = ('tokenizer.json', 'tokenizer.model')


def find(source: Path) -> tuple[Tokenizer | None, str]:
  """The tokenizer of a folder, and what there is to tell of it.
  UserError for one that cannot be read.
  """
  for name in _NAMES:
    if (source / name).exists():
      return open_tokenizer(source / name), ''
  return None, (
    f'{source} has no {" and no ".join(_NAMES)}: '
    'the run has no tokenizer: programs that take text refuse it, token ids work'
  )


def write(tokenizer: Tokenizer | None, target: Path) -> dict[str, int]:
  """Writes a run's tokenizer into a folder, and returns its token ids as config.json
  names them.
  """
  if tokenizer is None:
    return {}
  for name, content in tokenizer.files().items():
    files.replace(target / name, content)
  return {'bos_token_id': tokenizer.bos_id, 'eos_token_id': tokenizer.eos_id}
