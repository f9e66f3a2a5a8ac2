"""Names the prepared text of a config by the keys that decide its contents."""

import hashlib
import json
from collections.abc import Mapping

from moe.config import DataConfig

# Not data.dir, which is where it lies, nor weights and packing, which decide what is made of it.
_KEYS = (
  'sources',
  'validation_sources',
  'holdout',
  'text_key',
  'tokenizer',
  'tokenizer_sample_mb',
)
# Newer keys, which count only if they are set, so that earlier folders keep their names.
_SINCE = ('separator', 'bad_rows', 'format', 'chat_template')


def settings(values: Mapping) -> dict[str, object]:
  """The keys of `data` that decide the text, by name, from a config's `values` by dotted key.
  If train.init_from names a run, the tokenizer is that run's.
  """
  made = {key: values[f'data.{key}'] for key in _KEYS}
  younger = {key: values[f'data.{key}'] for key in _SINCE}
  made |= {key: value for key, value in younger.items() if value != _default(key)}
  if values['train.init_from'] and not made['tokenizer']:
    made['tokenizer'] = f'of {values["train.init_from"]}'
  return made | {'vocab_size': values['data.vocab_size'] or values['model.vocab_size']}


def digest(values: Mapping) -> str:
  """8 hexadecimal digits that name `values`, which are plain JSON."""
  return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


def _default(key):
  return DataConfig.__dataclass_fields__[key].default
