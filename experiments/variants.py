"""What the config files share: overrides of `base.py` by dotted key,
and the choice of a variant by name.

A file's VARIANTS maps a name to its overrides; nothing is computed until one is asked
for by `get_config(name)`.
"""

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path

from ml_collections import ConfigDict

from experiments import base
from moe.errors import UserError


def dense(num_layers: int, d_ff: int) -> dict:
  """A plain Transformer: every layer has one dense FFN of hidden width `d_ff`,
  and there is no expert at all.
  """
  return {
    'model.num_layers': num_layers,
    'model.num_dense_layers': num_layers,
    'model.d_ff': d_ff,
  } | experts(shared=0, routed=0, active=0, width=0)


def experts(shared: int, routed: int, active: int, width: int) -> dict:
  """`shared` + `routed` (`active`) experts of hidden width `width`;
  without routed ones there is nothing to balance.
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
  layers are dense, the key/value heads' share of the heads. `head_dim` divides `d_model`.
  """
  model, moe = config.model, config.moe
  heads = d_model // head_dim
  # Without the up to 0.4% by which the old width was itself rounded up,
  # what is a whole number stays one.
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

  `file`: `__file__` of the config file. UserError on a name unknown.
  """
  check(file, variants, name)
  config = base.get_config()
  config.update_from_flattened_dict({'name': f'{Path(file).stem}:{name}', **variants[name]})
  return config


def check(file: str, names: Iterable[str], name: str) -> None:
  """UserError where `name` is no variant of a file; it lists those that are, the nearest first."""
  if name not in names:
    nearest = sorted(names, key=lambda valid: -difflib.SequenceMatcher(None, name, valid).ratio())
    path = Path(file)
    if path.is_absolute() and path.is_relative_to(Path.cwd()):
      path = path.relative_to(Path.cwd())
    raise UserError(f'{path} has no variant {name!r}: choose one of {", ".join(nearest)}')
