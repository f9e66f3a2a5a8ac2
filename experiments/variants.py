"""What the config files share: overrides of `base.py` by dotted key,
and the choice of a variant by name.

A file's VARIANTS maps each name to its overrides. A config is built only when `get_config(name)`
asks for it.
"""

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path

from ml_collections import ConfigDict

from experiments import base
from moe.errors import UserError


def dense(num_layers: int, d_ff: int) -> dict:
  """A plain Transformer: one dense FFN of hidden width `d_ff` in every layer, and no experts."""
  return {
    'model.num_layers': num_layers,
    'model.num_dense_layers': num_layers,
    'model.d_ff': d_ff,
  } | experts(shared=0, routed=0, active=0, width=0)


def experts(shared: int, routed: int, active: int, width: int) -> dict:
  """`shared` shared and `routed` routed experts of hidden width `width`; a token takes `active` of
  the routed ones. Without routed experts the balance losses are off.
  """
  balance = (
    {}
    if routed
    else {
      'moe.expert_balance_weight': 0.0,
      'moe.device_balance_weight': 0.0,
      'moe.device_groups': 1,
    }
  )
  return {
    'moe.num_shared_experts': shared,
    'moe.num_experts': routed,
    'moe.experts_per_token': active,
    'moe.d_expert': width,
  } | balance


def resized(config: ConfigDict, num_layers: int, d_model: int, head_dim: int) -> dict:
  """Overrides that give `config` another depth and width, and keep its proportions.

  Kept: the size of an expert and of a dense FFN relative to d_model (widths of 0 stay 0), which
  layers are dense, the ratio of key/value heads to heads. `head_dim` must divide `d_model`.
  """
  model, moe = config.model, config.moe
  heads = d_model // head_dim
  # 0.996 takes off the up to 0.4% by which the old width was itself rounded up, so that a width
  # that comes out whole is not rounded up again.
  scaled = lambda old: (
    base.expert_width(d_model, 0.996 * old / (8 * model.d_model / 3)) if old else 0
  )
  width = lambda old: old if d_model == model.d_model else scaled(old)
  return {
    'model.num_layers': num_layers,
    'model.num_dense_layers': num_layers
    if model.num_dense_layers == model.num_layers
    else model.num_dense_layers,
    'model.d_model': d_model,
    'model.num_heads': heads,
    'model.num_kv_heads': max(1, heads * model.num_kv_heads // model.num_heads),
    'model.head_dim': head_dim,
    'model.d_ff': width(model.d_ff),
    'moe.d_expert': width(moe.d_expert),
  }


def build(file: str, variants: Mapping[str, Mapping], name: str) -> ConfigDict:
  """The config of one variant: `base.py` with its overrides, named `FILE:NAME`, locked.

  `file`: `__file__` of the config file. UserError for an unknown name.
  """
  check(file, variants, name)
  config = base.get_config()
  config.update_from_flattened_dict({'name': f'{Path(file).stem}:{name}', **variants[name]})
  return config


def check(file: str, names: Iterable[str], name: str) -> None:
  """Raises UserError if the file has no variant `name`; it lists the variants, nearest first."""
  if name not in names:
    nearest = sorted(names, key=lambda valid: -difflib.SequenceMatcher(None, name, valid).ratio())
    path = Path(file)
    if path.is_absolute() and path.is_relative_to(Path.cwd()):
      path = path.relative_to(Path.cwd())
    raise UserError(f'{path} has no variant {name!r}: choose one of {", ".join(nearest)}')
