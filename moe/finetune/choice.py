"""The choice of experts to tune, as a file that people edit, and as places in the arrays.

The text form, which configs have, is in moe/expert_choice.py. No jax import.
"""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

from moe import files
from moe.config import Config
from moe.errors import UserError
from moe.expert_choice import KEY, Choice, faults, is_file, parse, written

if TYPE_CHECKING:  # every program reads a config, few choose experts
  import numpy as np


def places(config: Config) -> 'np.ndarray':
  """int32 (N, C): the chosen experts of each of N layers, wider ones by all their units. C is the
  number of the layer with most. Places that stay empty hold distinct numbers from `num_units` on.
  """
  import numpy as np

  first_E, units_E = config.moe.first_units, config.moe.units_of_experts
  chosen = [
    [first_E[expert] + unit for expert in layer for unit in range(units_E[expert])]
    for layer in parse(config.finetune.experts)
  ]
  count = max(map(len, chosen))
  none = config.moe.num_units
  empty = range(none, none + count)
  return np.array([[*layer, *empty[: count - len(layer)]] for layer in chosen], np.int32)


def settled(config: Config, workdir: str | None = None) -> Config:
  """The config with the choice written out, if it names a file.

  If the file no longer exists, takes the choice that the run in `workdir` has. UserError, one line,
  for a file that cannot be read or does not fit the model.
  """
  spec = config.finetune.experts
  if not is_file(spec):
    return config
  path = Path(spec).expanduser()
  if workdir and not path.exists() and (own := files.stored_key(workdir, 'finetune', 'experts')):
    return _with(config, own)
  choice = read(path)
  config = _with(config, written(choice))
  for fault in faults(config, choice):
    raise UserError(fault.replace(KEY, f'{KEY}={spec}', 1))
  return config


def read(path: Path) -> Choice:
  """The choice in a file of `launch.select_experts`. UserError, naming file and layer, if it is
  damaged.
  """
  where = f'{KEY}={path}'
  try:
    content = json.loads(path.read_text(encoding='utf-8'))
  except FileNotFoundError:
    raise UserError(f'{where}: there is no such file') from None
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f'{where} cannot be read: {error}') from error
  except ValueError as error:
    raise UserError(f'{where} is not JSON: {error}') from error
  layers = content.get('layers') if isinstance(content, dict) else None
  if not isinstance(layers, list):
    raise UserError(f"{where} must be an object with a list 'layers', as launch.select_experts has")
  return tuple(_layer(where, number, layer) for number, layer in enumerate(layers))


def _layer(where, number, layer):
  experts = layer.get('experts') if isinstance(layer, dict) else None
  is_id = lambda item: isinstance(item, int) and not isinstance(item, bool) and item >= 0
  if not isinstance(experts, list) or not all(map(is_id, experts)):
    raise UserError(
      f"{where}: layers[{number}] must be an object with a list 'experts' of whole numbers from 0, "
      f'not {str(layer)[:60]}'
    )
  if layer.get('layer', number) != number:
    raise UserError(f"{where}: layers[{number}] says 'layer': {layer['layer']!r}, out of order")
  return tuple(sorted(experts))


def _with(config, text):
  return dataclasses.replace(config, finetune=dataclasses.replace(config.finetune, experts=text))
