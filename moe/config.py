"""Frozen dataclasses of a run, made once from an ml_collections ConfigDict and checked here, at the edge.

`experiments/base.py` documents every key; field names are the same. No jax import.
"""

import dataclasses
import difflib
import typing
from collections.abc import Mapping
from typing import Literal

from ml_collections import ConfigDict

from moe.errors import UserError


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  vocab_size: int
  num_layers: int
  d_model: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  num_dense_layers: int
  d_ff: int
  rope_base: float
  norm_eps: float
  init_std: float
  dtype: Literal['bfloat16', 'float32']
  remat: Literal['none', 'full', 'dots', 'moe']


@dataclasses.dataclass(frozen=True)
class MoEConfig:
  num_experts: int
  experts_per_token: int
  num_shared_experts: int
  d_expert: int
  router: Literal['softmax', 'hash']
  hash_seed: int
  expert_balance_loss: float
  device_balance_loss: float
  device_groups: int
  balance_scope: Literal['sequence', 'batch']
  router_z_loss: float


@dataclasses.dataclass(frozen=True)
class OpsConfig:
  implementation: Literal['auto', 'reference', 'xla', 'pallas_tpu', 'pallas_gpu']


MESH_AXES = ('data', 'fsdp', 'expert', 'tensor', 'stage')


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  data: int
  fsdp: int
  expert: int
  tensor: int
  stage: int
  zero: int
  transport: Literal['auto', 'ragged', 'padded', 'all_gather']
  receive_buffer: float


@dataclasses.dataclass(frozen=True)
class DataConfig:
  sources: str
  validation_sources: str
  holdout: float
  text_key: str
  dir: str
  tokenizer: str
  vocab_size: int
  tokenizer_sample_mb: float
  seq_len: int
  batch_size: int
  reset_at_documents: bool
  seed: int
  num_threads: int
  prefetch: int


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  peak_lr: float
  schedule: Literal['step_decay', 'constant', 'cosine']
  warmup_steps: int
  decay_at: tuple[float, ...]
  decay_factor: float
  final_lr_fraction: float
  b1: float
  b2: float
  eps: float
  weight_decay: float
  clip_norm: float


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  num_steps: int
  seed: int
  microbatches: int
  log_every: int
  heatmap_every: int
  loss_chunk: int
  max_bad_steps: int


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
  every_steps: int
  batch_size: int
  max_batches: int
  context: float


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
  every_steps: int
  keep_last: int
  keep_best: int


@dataclasses.dataclass(frozen=True)
class Config:
  """One run. Sections and keys are those of `experiments/base.py`."""

  name: str
  model: ModelConfig
  moe: MoEConfig
  ops: OpsConfig
  mesh: MeshConfig
  data: DataConfig
  optimizer: OptimizerConfig
  train: TrainConfig
  evaluation: EvaluationConfig
  checkpoint: CheckpointConfig

  @property
  def tokenizer_vocab_size(self) -> int:
    return self.data.vocab_size or self.model.vocab_size

  def to_dict(self) -> dict:
    """Plain JSON-able nested dict; `from_config_dict` takes it back."""
    return dataclasses.asdict(self)


def from_config_dict(config: ConfigDict | Mapping) -> Config:
  """ConfigDict or nested dict → Config. UserError on an unknown, missing, mistyped or contradictory key."""
  made = _build(Config, config.to_dict() if isinstance(config, ConfigDict) else config, prefix='')
  _validate(made)
  return made


def flatten(config: Mapping, prefix: str = '') -> dict[str, object]:
  """{'model': {'d_model': 8}} → {'model.d_model': 8}."""
  flat = {}
  for key, value in config.items():
    flat |= (
      flatten(value, f'{prefix}{key}.') if isinstance(value, Mapping) else {f'{prefix}{key}': value}
    )
  return flat


def differences(old: Mapping, new: Mapping) -> dict[str, tuple[object, object]]:
  """Dotted keys whose values differ between two nested dicts, with both values (None where a key is absent)."""
  old, new = flatten(old), flatten(new)
  comparable = lambda value: list(value) if isinstance(value, tuple) else value
  return {
    key: (old.get(key), new.get(key))
    for key in sorted(old.keys() | new.keys())
    if comparable(old.get(key)) != comparable(new.get(key))
  }


# None of these changes what a step computes.
_FREE_SECTIONS = ('evaluation', 'checkpoint', 'mesh')
_FREE_KEYS = (
  'name',
  'train.log_every',
  'train.heatmap_every',
  'train.max_bad_steps',
  'data.dir',
  'data.num_threads',
  'data.prefetch',
)


# These change in which order floats are added up, and no more: a run that goes on on another machine may need others.
_ROUNDING_KEYS = ('train.microbatches', 'train.loss_chunk', 'model.remat', 'ops.implementation')


def decides(key: str) -> bool:
  """Whether a dotted key has a part in what training computes, rounding included."""
  return key not in _FREE_KEYS and key.split('.')[0] not in _FREE_SECTIONS


def must_stay(key: str) -> bool:
  """Whether a dotted key may not differ when a run goes on: what decides its results but for rounding."""
  return decides(key) and key not in _ROUNDING_KEYS


def keys() -> list[str]:
  """Every dotted key, e.g. 'model.d_model'."""
  return [
    key
    for section, kind in typing.get_type_hints(Config).items()
    for key in (
      [f'{section}.{field.name}' for field in dataclasses.fields(kind)]
      if dataclasses.is_dataclass(kind)
      else [section]
    )
  ]


def unknown_key(key: str) -> UserError:
  """The error for a key that does not exist, naming the nearest that does."""

  def nearness(valid):
    whole, leaf = (
      difflib.SequenceMatcher(None, a, b).ratio()
      for a, b in ((key, valid), (key.rpartition('.')[2], valid.rpartition('.')[2]))
    )
    return max(whole, leaf - 0.05)  # a right name in the wrong section is still near

  return UserError(
    f'unknown config key {key!r}: the nearest valid key is {max(keys(), key=nearness)!r}'
  )


def _build(kind, values, prefix):
  if not isinstance(values, Mapping):
    raise UserError(f'config.{prefix.rstrip(".")} must be a section of keys, not {values!r}')
  hints = typing.get_type_hints(kind)
  for key in values:
    if key not in hints:
      raise unknown_key(prefix + key)
  made = {}
  for key, hint in hints.items():
    if key not in values:
      raise UserError(f'config key {prefix + key!r} is missing: see experiments/base.py')
    value = values[key]
    made[key] = (
      _build(hint, value, f'{prefix}{key}.')
      if dataclasses.is_dataclass(hint)
      else _typed(prefix + key, hint, value)
    )
  return kind(**made)


def _typed(key, hint, value):
  """`value` as the field's type, or an error that names the key. An int is a float; a bool is never a number."""
  wrong = lambda wanted: UserError(f'config.{key} must be {wanted}, not {value!r}')
  if typing.get_origin(hint) is Literal:
    if value not in typing.get_args(hint):
      raise wrong('one of ' + ' | '.join(typing.get_args(hint)))
    return value
  if typing.get_origin(hint) is tuple:
    number = lambda x: isinstance(x, (int, float)) and not isinstance(x, bool)
    if not isinstance(value, (tuple, list)) or not all(map(number, value)):
      raise wrong('a tuple of numbers')
    return tuple(float(item) for item in value)
  if hint is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
    raise wrong(
      {int: 'an integer', float: 'a number', str: 'a string', bool: 'True or False'}[hint]
    )
  return value


def _validate(c: Config):
  flat = flatten(c.to_dict())

  def require(condition, message):
    if not condition:
      raise UserError(message)

  def at_least(minimum, *names):
    for name in names:
      require(flat[name] >= minimum, f'config.{name} must be at least {minimum}, not {flat[name]}')

  def above_zero(*names):
    for name in names:
      require(flat[name] > 0, f'config.{name} must be greater than 0, not {flat[name]}')

  def share(*names):
    for name in names:
      require(
        0 <= flat[name] < 1, f'config.{name} must be at least 0 and below 1, not {flat[name]}'
      )

  at_least(
    1,
    'model.vocab_size',
    'model.num_layers',
    'model.d_model',
    'model.num_heads',
    'model.num_kv_heads',
    'model.head_dim',
  )
  at_least(0, 'model.num_dense_layers', 'model.d_ff', 'moe.d_expert')
  at_least(0, 'moe.num_experts', 'moe.experts_per_token', 'moe.num_shared_experts')
  at_least(
    0, 'moe.expert_balance_loss', 'moe.device_balance_loss', 'moe.router_z_loss', 'model.init_std'
  )
  at_least(
    1, 'moe.device_groups', 'data.seq_len', 'data.batch_size', 'data.num_threads', 'data.prefetch'
  )
  at_least(1, 'train.num_steps', 'train.microbatches', 'train.log_every', 'train.loss_chunk')
  at_least(
    1,
    'evaluation.batch_size',
    'evaluation.max_batches',
    'checkpoint.every_steps',
    'checkpoint.keep_last',
  )
  at_least(
    0,
    'train.heatmap_every',
    'train.max_bad_steps',
    'evaluation.every_steps',
    'checkpoint.keep_best',
  )
  at_least(
    0, 'data.vocab_size', 'optimizer.warmup_steps', 'optimizer.weight_decay', 'optimizer.clip_norm'
  )
  above_zero(
    'model.rope_base',
    'model.norm_eps',
    'optimizer.peak_lr',
    'optimizer.eps',
    'data.tokenizer_sample_mb',
  )
  share('data.holdout', 'evaluation.context', 'optimizer.b1', 'optimizer.b2')

  for axis in MESH_AXES:
    require(
      flat[f'mesh.{axis}'] >= 1 or flat[f'mesh.{axis}'] == -1,
      f'config.mesh.{axis} must be at least 1, or -1',
    )
  require(
    sum(flat[f'mesh.{axis}'] == -1 for axis in MESH_AXES) <= 1,
    'only one of '
    + ', '.join(f'mesh.{axis}' for axis in MESH_AXES)
    + ' may be -1, which is filled with what is left',
  )
  require(c.mesh.zero in (1, 3), f'config.mesh.zero must be 1 or 3, not {c.mesh.zero}')
  require(
    c.mesh.receive_buffer >= 1,
    f'config.mesh.receive_buffer must be at least 1, not {c.mesh.receive_buffer}',
  )

  m, e, d = c.model, c.moe, c.data
  require(
    m.d_model % m.num_heads == 0,
    f'model.d_model={m.d_model} is not divisible by model.num_heads={m.num_heads}',
  )
  require(
    m.num_heads % m.num_kv_heads == 0,
    f'model.num_heads={m.num_heads} is not divisible by model.num_kv_heads={m.num_kv_heads}',
  )
  require(
    m.head_dim % 2 == 0, f'model.head_dim={m.head_dim} must be even: rotary embedding turns pairs'
  )
  require(
    m.num_dense_layers <= m.num_layers,
    f'model.num_dense_layers={m.num_dense_layers} is more than model.num_layers={m.num_layers}',
  )
  require(
    m.num_dense_layers == 0 or m.d_ff > 0,
    f'model.num_dense_layers={m.num_dense_layers} needs model.d_ff, the width of their FFN, above 0',
  )
  if m.num_dense_layers < m.num_layers:
    require(
      e.num_experts + e.num_shared_experts > 0,
      'moe.num_experts and moe.num_shared_experts are both 0: the layers after model.num_dense_layers have no FFN',
    )
    require(e.d_expert > 0, f'moe.d_expert={e.d_expert} must be greater than 0')
  require(
    e.experts_per_token <= e.num_experts,
    f'moe.experts_per_token={e.experts_per_token} is more than moe.num_experts={e.num_experts}',
  )
  require(
    e.num_experts == 0 or e.experts_per_token >= 1,
    f'moe.experts_per_token={e.experts_per_token} must be at least 1 when moe.num_experts={e.num_experts}',
  )
  require(
    e.num_experts % e.device_groups == 0,
    f'moe.device_groups={e.device_groups} does not divide moe.num_experts={e.num_experts}',
  )
  require(
    c.tokenizer_vocab_size <= m.vocab_size,
    f'data.vocab_size={d.vocab_size} is more than model.vocab_size={m.vocab_size}',
  )
  require(
    d.batch_size % c.train.microbatches == 0,
    f'train.microbatches={c.train.microbatches} does not divide data.batch_size={d.batch_size}',
  )
  require(
    all(0 < at <= 1 for at in c.optimizer.decay_at),
    f'optimizer.decay_at={c.optimizer.decay_at} must be shares of train.num_steps between 0 and 1',
  )
