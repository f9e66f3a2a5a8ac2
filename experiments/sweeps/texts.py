"""What names the prepared text of a config: the keys that decide its contents."""

import hashlib
import json
from collections.abc import Mapping

from moe.config import DataConfig

# data.dir names where it lies; weights and packing decide what is made of it.
_KEYS = (
  'sources',
  'validation_sources',
  'holdout',
  'text_key',
  'tokenizer',
  'tokenizer_sample_mb',
)
# Younger ones: only where they are set, so that folders of before keep their names.
_SINCE = ('separator', 'bad_rows', 'format', 'chat_template')


def settings(values: Mapping) -> dict[str, object]:
  """Of a config's `values` by dotted key, those of `data` by name.
  Where train.init_from names a run, the tokenizer is that run's.
  """
  made = {key: values[f'data.{key}'] for key in _KEYS}
  younger = {key: values[f'data.{key}'] for key in _SINCE}
  made |= {key: value for key, value in younger.items() if value != _default(key)}
  if values['train.init_from'] and not made['tokenizer']:
    made['tokenizer'] = f'of {values["train.init_from"]}'
  return made | {'vocab_size': values['data.vocab_size'] or values['model.vocab_size']}


def digest(values: Mapping) -> str:
  """8 hexadecimal digits that name some JSON."""
  return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


def _default(key):
  return DataConfig.__dataclass_fields__[key].default
