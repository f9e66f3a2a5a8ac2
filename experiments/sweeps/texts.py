"""What names the prepared text of a config: the keys that decide its contents."""

import hashlib
import json
from collections.abc import Mapping

from moe.config import Config, DataConfig

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


def settings(config: Config) -> dict[str, object]:
  """By key. Where train.init_from names a run, the tokenizer is that run's."""
  of = config.data
  made = {key: getattr(of, key) for key in _KEYS}
  made |= {key: getattr(of, key) for key in _SINCE if getattr(of, key) != _default(key)}
  if config.train.init_from and not of.tokenizer:
    made['tokenizer'] = f'of {config.train.init_from}'
  return made | {'vocab_size': config.tokenizer_vocab_size}


def digest(values: Mapping) -> str:
  """8 hexadecimal digits that name some JSON."""
  return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


def _default(key):
  return DataConfig.__dataclass_fields__[key].default
