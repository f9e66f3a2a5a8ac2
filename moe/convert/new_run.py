"""A run's folder made of weights alone: one checkpoint, step 0, streamed, whole or not there."""

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
_MARGIN = 50_000_000  # bytes beside the parameters: metadata, and what a file system rounds up


def write(
  target: Path,
  label: str,
  config: Config,
  tokenizer: Tokenizer | None,
  sources: Mapping[str, Source],
  origin: Mapping,
  verify: Callable[[], None] = lambda: None,
) -> int:
  """Makes the folder `target`, which is not there. Returns the bytes of its parameters.

  There is no training state: nothing is left to go on from.

  Args:
    label: of the progress bar.
    sources: every parameter by its dotted name, each read while it is written.
    origin: what provenance.json says of where the weights are from.
    verify: called when all has been read.

  UserError if the disk has less room, and what a source or `verify` raises; then there is no
  `target`.
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
  # They are known only when all is read.
  again = small_items.to_save(config.to_dict(), tokenizer, None, {'params': sums})['checksums']
  checkpointer = ocp.Checkpointer(ocp.JsonCheckpointHandler())
  checkpointer.save((path / 'checksums').absolute(), args=again, force=True)
  checkpointer.close()
