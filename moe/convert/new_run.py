"""Makes a run's folder from weights alone: one checkpoint, step 0. It is streamed, and it appears
whole or not at all.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import orbax.checkpoint as ocp

from moe import files
from moe.config import Config
from moe.convert import parameters, tokenizers
from moe.convert.outputs import appearing
from moe.convert.parameters import Source
from moe.data.progress import Progress
from moe.data.tokenizers import Tokenizer
from moe.keys import unflatten
from moe.storage import provenance, small_items

_STEP = 0
_MARGIN = 50_000_000  # bytes besides the parameters: metadata and the file system's rounding up


def write(
  target: Path,
  label: str,
  config: Config,
  tokenizer: Tokenizer | None,
  sources: Mapping[str, Source],
  origin: Mapping,
  verify: Callable[[], None] = lambda: None,
) -> int:
  """Makes the folder `target`, which must not exist, and returns the bytes of its parameters.

  It has no training state, so training cannot resume from it.

  Args:
    label: of the progress bar.
    sources: every parameter by its dotted name; each is read while it is written.
    origin: what provenance.json records about where the weights come from.
    verify: called when everything has been read.

  UserError if the disk has too little room. Raises what a source or `verify` raises. After an
  error there is no `target`.
  """
  size = sum(source.nbytes for source in sources.values())
  with appearing(target, size + _MARGIN) as folder:
    with Progress(label, size) as progress:
      _save(folder / 'checkpoints' / str(_STEP), config, tokenizer, unflatten(sources), progress)
    verify()
    files.replace(folder / 'config.json', files.to_json(config.to_dict(), indent=2) + '\n')
    if tokenizer:
      tokenizers.write(tokenizer, folder)
    provenance.note(folder, provenance.describe() | origin)
  return size


def _save(path, config, tokenizer, tree, progress):
  path.parent.mkdir()
  items = small_items.to_save(config.to_dict(), tokenizer, None, {})
  sums = parameters.save(path, tree, items, progress.add)
  # The checksums are known only when everything has been read, so this item is written twice.
  again = small_items.to_save(config.to_dict(), tokenizer, None, {'params': sums})['checksums']
  checkpointer = ocp.Checkpointer(ocp.JsonCheckpointHandler())
  checkpointer.save((path / 'checksums').absolute(), args=again, force=True)
  checkpointer.close()
