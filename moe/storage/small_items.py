"""What a checkpoint holds beside its arrays: config, tokenizer, which text it was trained on,
and their checksums.
"""

import os
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from moe.data.tokenizers import Tokenizer, from_bytes
from moe.storage import checksums
from moe.storage.reading import attempt, available_steps, read_items


class SmallItems(NamedTuple):
  """The small items as they were saved. `text` is None for converted weights; in checkpoints from
  before these items were kept, it is None, too, and `checked` is False.

  `tokenizer` is empty if the run has none, as for converted weights whose tokenizer is not read.
  """

  config: dict
  tokenizer: bytes
  # Contents of tokenizer_config.json; empty where there is none.
  tokenizer_config: bytes
  text: dict | None
  checksums: dict
  checked: bool

  def open_tokenizer(self) -> Tokenizer | None:
    """The tokenizer; None if the run has none."""
    return from_bytes(self.tokenizer, self.tokenizer_config) if self.tokenizer else None

  @property
  def has_training(self) -> bool:
    """Whether a run can resume from it: converted weights come without optimizer and data."""
    return 'training' in self.checksums


def to_save(config: dict, tokenizer: Tokenizer | None, text: dict | None, of_rest: Mapping) -> dict:
  """Orbax's arguments that save small items. `of_rest`: checksums of the other items, by name."""
  files = {}
  if tokenizer:
    files = {'model': tokenizer.to_bytes(), 'config': tokenizer.tokenizer_config}
  sums = {
    **of_rest,
    'config': checksums.of_json(config),
    'tokenizer': checksums.of_bytes(b''.join(files.values())),
    'text': checksums.of_json(text),
  }
  # Orbax saves no empty array.
  arrays = {name: np.frombuffer(each, np.uint8) for name, each in files.items() if each}
  return {
    'config': ocp.args.JsonSave(config),
    **({'tokenizer': ocp.args.StandardSave(arrays)} if arrays else {}),
    'text': ocp.args.JsonSave({'identity': text}),
    'checksums': ocp.args.JsonSave(sums),
  }


def read(path: epath.Path) -> SmallItems:
  """The small items of the checkpoint in `path`. ValueError if one is not what was saved;
  raises what Orbax raises if one cannot be read.
  """
  names = ['config', 'checksums'] + ['text'] * (path / 'text').is_dir()
  tokenizer = {'tokenizer': ocp.args.StandardRestore()} if (path / 'tokenizer').is_dir() else {}
  found = read_items(path, **tokenizer, **{name: ocp.args.JsonRestore() for name in names})
  sums, files = found['checksums'], found['tokenizer'] if tokenizer else {}
  content = lambda name: np.asarray(files[name]).tobytes() if name in files else b''
  items = SmallItems(
    found['config'],
    content('model'),
    content('config'),
    found['text']['identity'] if 'text' in found else None,
    sums,
    'config' in sums,
  )
  if not items.checked:
    return items
  actual = {
    'config': checksums.of_json(items.config),
    'tokenizer': checksums.of_bytes(items.tokenizer + items.tokenizer_config),
    'text': checksums.of_json(items.text),
  }
  for name, value in actual.items():
    if sums[name] != value:
      raise ValueError(f'its {name} is not the one that was saved')
  return items


def newest(workdir: str | os.PathLike) -> tuple[int, SmallItems | None]:
  """(step, small items) of a run's newest checkpoint whose small items can be read;
  (0, None) if there is none.
  """
  for step in reversed(available_steps(workdir)):
    path = epath.Path(workdir) / 'checkpoints' / str(step)
    items, fault = attempt(lambda path=path: read(path))
    if not fault:
      return step, items
  return 0, None
