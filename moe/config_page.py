"""The page of all keys, docs/configuration.md, made from their declarations.

python -m launch.describe --keys > docs/configuration.md
"""

import dataclasses
import typing
from typing import Literal

from moe.config import KEYS, Config
from moe.keys import NOTHING, ROUNDING, Key, wanted

_HEAD = """# Every key

```
python -m launch.train --config=experiments/proxy.py:deepseek_moe --workdir=DIR --config.optimizer.peak_lr=1e-3
python -m launch.describe --keys > docs/configuration.md      # this page
```

A config is a Python file whose `get_config()` starts from `experiments/base.py` and changes values.
`moe/config.py` declares each key once, and this page is generated from it. A wrong value gives a
one-line error. On the command line `--config.SECTION.KEY=VALUE` overrides one key.

A resumed run must keep the keys that decide its results. It may change keys marked ○, which do not
affect what is learnt, and keys marked ≈, which affect only the order in which floats are summed.
"""  # noqa: E501
_MARKS = {NOTHING: ' ○', ROUNDING: ' ≈'}


def page() -> str:
  """The page as Markdown, with a table for each section of keys."""
  parts = [_HEAD]
  for field in dataclasses.fields(Config):
    names = [name for name in KEYS if name.partition('.')[0] == field.name]
    meaning = field.metadata.get('meaning')
    parts.append(f'\n## {field.name}\n\n' + (f'{meaning}.\n\n' if meaning else ''))
    parts.append('| key | default | values | meaning |\n|---|---|---|---|\n')
    parts += [_row(name, KEYS[name]) for name in names]
  return ''.join(parts)


def _row(name: str, key: Key) -> str:
  values = ', '.join(filter(None, (wanted(key.type), key.range)))
  if typing.get_origin(key.type) is Literal:
    values = ' | '.join(f'`{value}`' for value in typing.get_args(key.type))
  meaning = f'{key.meaning} ({key.unit})' if key.unit else key.meaning
  cells = (f'`{name}`{_MARKS.get(key.effect, "")}', f'`{key.default!r}`', values, meaning)
  return '| ' + ' | '.join(cell.replace('|', '\\|') for cell in cells) + ' |\n'
