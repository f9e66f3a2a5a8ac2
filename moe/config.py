"""Every configuration key, once: type, default, meaning, unit and range, as frozen dataclasses.

The defaults are the paper's 2B DeepSeekMoE (Table 7). `experiments/base.py` hands them out as a
ConfigDict; what comes back is turned into a `Config` here, at the edge, and checked.
docs/configuration.md is made from this file:

  python -m launch.describe --keys > docs/configuration.md

A new key is one line, its default or `before=` what a run did before the key existed: old runs are
read with that. A key that gets another name leaves its old one in ALIASES. No jax import.
"""

import dataclasses
import functools
import itertools
from collections.abc import Mapping
from typing import Literal

from ml_collections import ConfigDict

from moe.contradictions import contradictions
from moe.errors import UserError

# `differences`, `listed` and `flatten` are for whoever compares configs.
from moe.keys import (
  LARGEST_SEED,
  MESH_AXES,
  NOTHING,
  RESULTS,
  ROUNDING,
  Key,
  checked,
  declared,
  flatten,
  key,
  nearest,
  section,
  unflatten,
)
from moe.keys import (
  differences as differences,
)
from moe.keys import (
  listed as listed,
)

# {old dotted name: its name now}. Old names are understood in stored
# configs and on the command line.
ALIASES: dict[str, str] = {
  'moe.expert_balance_loss': 'moe.expert_balance_weight',
  'moe.device_balance_loss': 'moe.device_balance_weight',
  'moe.router_z_loss': 'moe.router_z_weight',
}
# What trained parameters may be loaded as: numbers, or few bits for programs that only run them.
FEW_BITS = ('int8', 'int4')
STORED_TYPES = ('bfloat16', 'float32', *FEW_BITS)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  vocab_size: int = key(
    8000, 'rows of the embedding and of the output head', at_least=1, at_most=2**24
  )
  num_layers: int = key(9, 'Transformer blocks', at_least=1, at_most=10_000)
  d_model: int = key(1280, 'width of the residual stream', at_least=1, at_most=2**20)
  num_heads: int = key(10, 'query heads', at_least=1, at_most=2**16)
  num_kv_heads: int = key(
    10,
    'key and value heads; fewer than num_heads is grouped-query attention; must divide num_heads',
    at_least=1,
    at_most=2**16,
  )
  head_dim: int = key(
    128, 'width of a head; even, since rotary embedding turns pairs', at_least=1, at_most=2**16
  )
  num_dense_layers: int = key(
    0, 'leading layers that have one dense FFN instead of experts', at_least=0, at_most=10_000
  )
  d_ff: int = key(0, 'hidden width of those dense FFNs', at_least=0, at_most=2**24)
  rope_base: float = key(10_000.0, 'base of the rotary frequencies', at_least=1, at_most=1e12)
  norm_eps: float = key(1e-6, 'added to the mean square in RMSNorm', above=0, at_most=1)
  init_std: float = key(
    0.006, 'every matrix starts from N(0, init_std²) (4.1.3)', at_least=0, at_most=100
  )
  dtype: Literal['bfloat16', 'float32'] = key(
    'bfloat16', 'compute type; parameters, routing, norms and loss are float32'
  )
  remat: Literal['none', 'full', 'dots', 'moe'] = key(
    'none',
    'what backward recomputes: nothing, everything, all but matmul outputs, only MoE layers',
    effect=ROUNDING,
  )
  unroll: int = key(
    0,
    'layers in one turn of the loop over them: more compile longer and copy less between turns; '
    '0: all on one CPU, where they are few and nothing is recomputed, else one',
    at_least=0,
    at_most=10_000,
    effect=ROUNDING,
    before=1,
  )

  @property
  def num_moe_layers(self) -> int:
    return self.num_layers - self.num_dense_layers


@dataclasses.dataclass(frozen=True)
class MoEConfig:
  num_experts: int = key(
    63, 'routed experts, mN − K_s in the paper; 0: shared experts only', at_least=0, at_most=2**16
  )
  experts_per_token: int = key(7, 'routed experts a token, mK − K_s', at_least=0, at_most=2**16)
  num_shared_experts: int = key(1, 'K_s: experts that see every token', at_least=0, at_most=2**16)
  shared_gate: bool = key(
    False, "weights the shared experts' output by σ(u · w), token by token (Qwen1.5-MoE)"
  )
  d_expert: int = key(
    856, 'hidden width of one expert, routed or shared', at_least=0, at_most=2**24
  )
  wide_experts: int = key(
    0,
    'leading routed experts that are wide_factor times as wide as d_expert',
    at_least=0,
    at_most=2**16,
  )
  wide_factor: int = key(2, 'how many times as wide', at_least=2, at_most=64)
  router: Literal['softmax', 'sigmoid', 'hash'] = key(
    'softmax',
    'softmax: top-k of the affinities, Eq. 7–11; sigmoid: each expert by itself, as DeepSeek-V3; '
    'hash: fixed, by token id, gates are 1',
  )
  normalize_gates: bool = key(
    False, "a token's gates add up to 1: of softmax that is softmax over the chosen experts"
  )
  gate_scale: float = key(1.0, 'times the gates', above=0, at_most=1e3)
  gate_mass: float = key(
    1.0,
    'adaptive K: of the experts_per_token best a token takes the fewest that hold this share of '
    'their affinities (arXiv 2403.07652)',
    above=0,
    at_most=1,
  )
  balancing: Literal['none', 'bias', 'quantile'] = key(
    'none',
    'of the choice, without a loss: a bias, moved by a fixed step (arXiv 2408.15664), or to the '
    'quantile that balances the last batch',
  )
  bias_update_rate: float = key(0.001, "the step of balancing 'bias'", at_least=0, at_most=1)
  device_limit: int = key(
    0,
    "groups of device_groups that a token's experts are in, at most; 0: all",
    at_least=0,
    at_most=2**16,
  )
  hash_seed: int = key(0, "of the hash router's table", at_least=0, at_most=LARGEST_SEED)
  expert_balance_weight: float = key(0.01, 'α1 of Eq. 12', at_least=0, at_most=1e6)
  device_balance_weight: float = key(0.0, 'α2 of Eq. 15', at_least=0, at_most=1e6)
  device_groups: int = key(
    1,
    'D of Eq. 15: groups of consecutive experts; independent of the mesh',
    at_least=1,
    at_most=2**16,
  )
  balance_scope: Literal['sequence', 'batch'] = key(
    'sequence', 'the T of Eq. 13–14: each row of the batch, then averaged, or the whole batch'
  )
  router_z_weight: float = key(
    0.0, 'weight of mean(logsumexp(router logits)²)', at_least=0, at_most=1e6
  )

  @property
  def units_of_experts(self) -> tuple[int, ...]:
    """The width of every routed expert, in units of d_expert, by which weights are stored."""
    narrow = self.num_experts - self.wide_experts
    return (self.wide_factor,) * self.wide_experts + (1,) * narrow

  @property
  def first_units(self) -> tuple[int, ...]:
    """Where every routed expert's units begin among all."""
    return tuple(itertools.accumulate(self.units_of_experts[:-1], initial=0))

  @property
  def num_units(self) -> int:
    """Of all routed experts together."""
    return sum(self.units_of_experts)

  @property
  def mean_units(self) -> float:
    """Of an expert."""
    return self.num_units / max(self.num_experts, 1)

  @property
  def max_units(self) -> int:
    """Of an expert."""
    return max(self.units_of_experts, default=1)

  @property
  def is_unequal(self) -> bool:
    """Whether experts differ in width."""
    return 0 < self.wide_experts < self.num_experts


@dataclasses.dataclass(frozen=True)
class OpsConfig:
  implementation: Literal['auto', 'reference', 'xla', 'pallas_tpu', 'pallas_gpu'] = key(
    'auto', 'of every op in moe/ops; auto: by platform', effect=ROUNDING
  )
  force_balanced_routing: bool = key(
    False,
    'only for measuring machines: every expert gets as many tokens as the others, whatever the '
    'router says; gates and gradients stay the router’s',
  )


_axis = functools.partial(key, at_least=1, at_most=2**20, fill=-1, unit='devices')


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  data: int = _axis(-1, 'copies of the model')
  fsdp: int = _axis(1, 'parameters and optimizer state are split over these (ZeRO), as batches are')
  expert: int = _axis(
    1, 'routed experts live on different ones; all else treats this as one more data axis'
  )
  tensor: int = _axis(1, 'heads, FFN widths and vocabulary are split over these')
  stage: int = _axis(1, 'layers are split over these: a pipeline of train.microbatches')
  zero: Literal[1, 3] = key(
    3, 'what fsdp splits: 3 parameters and optimizer state, 1 optimizer state only'
  )
  transport: Literal['auto', 'ragged', 'padded', 'all_gather'] = key(
    'auto', 'of tokens to experts; ragged: TPU and GPU; all_gather: few devices'
  )
  receive_buffer: float = key(
    1.5,
    "a device's room for tokens, over its share when balanced; more come in further rounds",
    at_least=1,
    at_most=2**16,
  )


@dataclasses.dataclass(frozen=True)
class DataConfig:
  format: Literal['text', 'chat'] = key(
    'text', 'of the sources: documents, or conversations as JSON (docs/chat.md)'
  )
  sources: str = key(
    'builtin',
    "'builtin', or DOMAIN[@WEIGHT][:TEXT_KEY]=FILES, several separated by ';'; FILES is a file, a "
    'folder or a glob with *, **, [ab], {a,b}, {00..09} and ~, of plain text, JSON, CSV or '
    'Parquet; .gz, .zst, .bz2 and .xz too',
  )
  validation_sources: str = key(
    '', "the same for held-out text; '': hold out whole documents of `sources`"
  )
  holdout: float = key(
    0.02,
    "share of documents held out, chosen by a hash of their text (builtin: of their file's path); "
    'of a domain with too few for that, the end of the longest',
    at_least=0,
    below=1,
  )
  text_key: str = key(
    'text',
    'field of a JSON row, or column of a CSV or Parquet file, with the text; of a conversation the '
    "field with its messages or PROMPT+RESPONSE, 'text': messages, or prompt+response",
  )
  chat_template: Literal['deepseek', 'plain', 'tokenizer'] = key(
    'deepseek',
    "chat: how turns are written down; tokenizer: by its own chat_template, which is Jinja's",
  )
  learn_from: Literal['assistant', 'all'] = key(
    'assistant', 'chat: the tokens that are learnt: replies and their ends, or all'
  )
  too_long: Literal['cut', 'drop'] = key(
    'cut', 'chat: conversations longer than seq_len lose their end, or are left out'
  )
  separator: str = key(
    '', "cuts plain-text files into documents, \\n is a line end; '': a file is one document"
  )
  bad_rows: Literal['refuse', 'skip'] = key(
    'refuse', 'rows that are no text: refuse | skip (leave out, count and tell)'
  )
  max_document_mb: float = key(
    64.0,
    'longest document, line or row that is read',
    unit='MB, 10⁶ bytes',
    above=0,
    at_most=1000,
    effect=NOTHING,
  )
  dir: str = key(
    '',
    "where prepared data lies or will be written, for several runs to share; '': WORKDIR/data",
    effect=NOTHING,
  )
  tokenizer: str = key(
    '', "an existing SentencePiece .model or tokenizer.json; '': train one on the corpus"
  )
  vocab_size: int = key(
    0,
    'pieces of the tokenizer; 0: model.vocab_size, or less where data.tokenizer has less',
    at_least=0,
    at_most=2**24,
  )
  tokenizer_sample_mb: float = key(
    10.0,
    'training text that a new tokenizer is trained on',
    unit='MB, 10⁶ bytes',
    above=0,
    at_most=100_000,
  )
  seq_len: int = key(2048, 'length of a sequence', unit='tokens', at_least=1, at_most=2**24)
  batch_size: int = key(
    2048,
    'sequences a step, over all devices and microbatches',
    at_least=1,
    at_most=2**24,
  )
  reset_at_documents: bool = key(
    True, 'attention and rotary positions restart at document boundaries'
  )
  seed: int = key(
    0, 'of the order of documents, sequences and domains', at_least=0, at_most=LARGEST_SEED
  )
  num_threads: int = key(
    2,
    'threads that read and pack; never changes what a step sees',
    at_least=1,
    at_most=1024,
    effect=NOTHING,
  )
  prefetch: int = key(8, 'batches kept ready', at_least=1, at_most=4096, effect=NOTHING)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  name: Literal['adamw'] = key('adamw', 'what makes updates of gradients')
  peak_lr: float = key(1.08e-3, 'peak learning rate', above=0, at_most=1000)
  schedule: Literal['step_decay', 'constant', 'cosine'] = key('step_decay', 'after warm-up')
  warmup_steps: int = key(2000, 'linear, from 0', unit='steps', at_least=0)
  start_step: int = key(
    0,
    'of the schedule, where the run begins in it: it is one of start_step + train.num_steps steps, '
    'and the run takes its last train.num_steps',
    unit='steps',
    at_least=0,
    at_most=2**30,
  )
  decay_at: tuple[float, ...] = key(
    (0.8, 0.9),
    'step_decay: shares of the schedule at which the rate is multiplied by decay_factor',
    above=0,
    at_most=1,
  )
  decay_factor: float = key(0.316, 'see decay_at', at_least=0, at_most=1)
  final_lr_fraction: float = key(
    0.1, 'cosine: where it ends, as a share of peak_lr', at_least=0, at_most=1
  )
  b1: float = key(0.9, "Adam's decay of the mean gradient", at_least=0, below=1)
  b2: float = key(0.95, "Adam's decay of the mean squared gradient", at_least=0, below=1)
  eps: float = key(1e-8, "Adam's, added to the root of the mean square", above=0, at_most=1)
  weight_decay: float = key(0.1, 'on matrices, not on norm scales', at_least=0, at_most=1000)
  clip_norm: float = key(1.0, 'largest global gradient norm; 0: no clipping', at_least=0)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  num_steps: int = key(25_000, 'length of the run', unit='steps', at_least=1)
  seed: int = key(0, 'of the initial parameters', at_least=0, at_most=LARGEST_SEED)
  init_from: str = key(
    '',
    "DIR[:STEP], another run's folder, a converted one too: its weights are the initial "
    'parameters; without STEP the newest checkpoint that can be read; a DIR whose own name ends in '
    ":NUMBER is written with a ':' at its end",
  )
  init_skip: tuple[str, ...] = key(
    (),
    'init_from: glob patterns of parameter paths, whose * also matches /: what is initialised '
    'anew, or left out where the model has it no more',
  )
  init_optimizer: bool = key(
    False, "init_from: take the optimizer's state too; False: it starts from nothing"
  )
  init_data: bool = key(
    False,
    'init_from: continue the text where the source was, of the same text and batches; '
    'False: from its beginning',
  )
  microbatches: int = key(
    1,
    'gradient accumulation: parts that a batch is computed in; never changes the loss',
    at_least=1,
    effect=ROUNDING,
  )
  log_every: int = key(
    10,
    'between metrics, the only steps that wait for the device',
    unit='steps',
    at_least=1,
    effect=NOTHING,
  )
  writers: str = key(
    'tensorboard',
    'beside metrics.jsonl, separated by commas: tensorboard, wandb; empty: none',
    effect=NOTHING,
  )
  profile_steps: tuple[float, ...] = key(
    (),
    'first and last step that are traced into WORKDIR/profile; empty: none',
    at_least=1,
    effect=NOTHING,
  )
  heatmap_every: int = key(
    500,
    "between the experts' loads in metrics.jsonl, and as a heatmap in the writers; 0: none",
    unit='steps',
    at_least=0,
    effect=NOTHING,
  )
  loss_chunk: int = key(
    2048,
    'tokens whose logits exist at once',
    at_least=1,
    effect=ROUNDING,
  )
  max_bad_steps: int = key(
    10, 'more non-finite steps than this in a row stop the run', at_least=0, effect=NOTHING
  )


@dataclasses.dataclass(frozen=True)
class FinetuneConfig:
  trainable: Literal['all', 'router_frozen', 'experts', 'lora'] = key(
    'all',
    'all: every parameter; router_frozen: all but the routers; experts: the routed experts that '
    'finetune.experts names, and adapters; lora: adapters alone. What is not trained stays bit for '
    'bit, and has no optimizer state',
  )
  experts: str = key(
    '',
    "a file of launch.select_experts, or '3,17;2;;40': the chosen experts of each MoE layer; a run "
    'keeps the choice itself',
  )
  lora_rank: int = key(
    0,
    'r of adapters (LoRA, arXiv 2106.09685): a matrix W is used as W + lora_alpha/r · A B, and A '
    'and B are trained; 0: none',
    at_least=0,
    at_most=2**16,
  )
  lora_alpha: float = key(16.0, 'see lora_rank', above=0, at_most=1e6)
  lora_targets: tuple[str, ...] = key(
    ('attention',),
    'matrices with adapters: query, key, value, out, or attention for all four; experts: those of '
    'finetune.experts',
  )


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
  every_steps: int = key(
    1000, 'between held-out losses while training; 0: only at the end', unit='steps', at_least=0
  )
  batch_size: int = key(16, 'sequences at once', at_least=1, at_most=2**24)
  max_batches: int = key(
    32, 'batches a domain while training; launch.evaluate scores everything', at_least=1
  )
  context: float = key(
    0.5,
    'share of a window that is context only when a document is longer than a sequence',
    at_least=0,
    below=1,
  )
  tasks: str = key(
    '',
    'benchmarks that are scored at every evaluation, separated by commas, as launch.evaluate '
    "--tasks has them; '': none",
  )
  task_limit: int = key(100, 'rows of each of them', at_least=1, at_most=2**24)
  task_data: str = key('', 'folder with their rows: TASK/SPLIT.jsonl')


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
  every_steps: int = key(1000, 'between checkpoints', unit='steps', at_least=1)
  keep_last: int = key(2, 'most recent checkpoints that are kept', at_least=1)
  keep_best: int = key(
    1,
    'checkpoints that are kept for the lowest held-out loss, which is then measured at every '
    'checkpoint; 0: none',
    at_least=0,
  )


@dataclasses.dataclass(frozen=True)
class Config:
  """One run."""

  name: str = key('base', 'shown in logs and reports', effect=NOTHING)
  model: ModelConfig = section(ModelConfig, 'The Transformer')
  moe: MoEConfig = section(MoEConfig, 'Experts, router and what keeps them balanced')
  ops: OpsConfig = section(OpsConfig, 'Implementations of the operations')
  mesh: MeshConfig = section(
    MeshConfig,
    'Devices along each axis: their product is the number of devices, '
    'and -1 is filled with what is left',
    NOTHING,
  )
  data: DataConfig = section(DataConfig, 'Text, tokenizer and batches')
  optimizer: OptimizerConfig = section(OptimizerConfig, 'AdamW and its learning rate')
  train: TrainConfig = section(TrainConfig, 'The training loop')
  finetune: FinetuneConfig = section(FinetuneConfig, 'What of the model is trained')
  evaluation: EvaluationConfig = section(EvaluationConfig, 'Held-out losses', NOTHING)
  checkpoint: CheckpointConfig = section(CheckpointConfig, 'What is kept of a run', NOTHING)

  @property
  def has_routed_experts(self) -> bool:
    return bool(self.moe.num_experts and self.model.num_moe_layers)

  @property
  def tokenizer_vocab_size(self) -> int:
    return self.data.vocab_size or self.model.vocab_size

  def to_dict(self) -> dict:
    """Plain JSON-able nested dict; `from_config_dict` takes it back."""
    return dataclasses.asdict(self)


KEYS: dict[str, Key] = declared(Config)


def defaults() -> ConfigDict:
  """Every key with its default, locked: no key can be added."""
  return ConfigDict(unflatten({name: each.default for name, each in KEYS.items()})).lock()


def from_config_dict(config: ConfigDict | Mapping) -> Config:
  """ConfigDict or nested dict → Config. UserError on an unknown, missing,
  mistyped or contradictory key.
  """
  config = config.to_dict() if isinstance(config, ConfigDict) else config
  flat = flatten(_mapping(config, 'config'), leaves=KEYS)
  for name, value in flat.items():
    if any(known.startswith(f'{name}.') for known in KEYS):
      raise UserError(f'config.{name} must be a section of keys, not {value!r}')
    if name not in KEYS:
      raise unknown_key(name)
  for name in KEYS:
    if name not in flat:
      raise UserError(f'config key {name!r} is missing: start from experiments/base.py')
  return _made(flat)


def from_stored(stored: Mapping, where: str) -> Config:
  """The config that some version of this code has written: a run's config.json, a checkpoint's own.

  Renamed keys are taken by ALIASES, and keys that did not exist yet mean what the code did then.
  `where`: the file, for the UserError about keys that are unknown here, or values that are wrong.
  """
  flat = flatten(_mapping(stored, where), leaves=KEYS)
  renamed = {ALIASES.get(name, name): value for name, value in flat.items()}
  if unknown := [repr(name) for name in renamed if name not in KEYS]:
    raise UserError(
      f'{where} has config keys that are unknown here, '
      f'of another version of the code: {", ".join(unknown)}'
    )
  try:
    return _made({name: each.stored_default for name, each in KEYS.items()} | renamed)
  except UserError as error:
    raise UserError(f'{where}: {error}') from error


def first_name(name: str) -> str:
  """What a key was called at first: names what is told apart by it, such as a hash of settings,
  for ever.
  """
  return next((old for old, now in ALIASES.items() if now == name), name)


def affects_training(name: str) -> bool:
  """Whether a dotted key has a part in what training computes, rounding included."""
  return name not in KEYS or KEYS[name].effect != NOTHING


def must_stay(name: str) -> bool:
  """Whether a dotted key may not differ when a run is resumed:
  what decides its results but for rounding.
  """
  return name not in KEYS or KEYS[name].effect == RESULTS


def keys() -> list[str]:
  """Every dotted key, e.g. 'model.d_model'."""
  return list(KEYS)


def unknown_key(name: str) -> UserError:
  """The error for a key that does not exist, naming its new name,
  or the nearest that does if one is near.
  """
  if name in ALIASES:
    return UserError(f'config key {name!r} is now called {ALIASES[name]!r}')
  near = nearest(name, KEYS)
  hint = f'the nearest valid key is {near!r}' if near else 'docs/configuration.md lists the keys'
  return UserError(f'unknown config key {name!r}: {hint}')


def mesh_sizes(written: str) -> dict[str, int] | None:
  """{axis: devices} of a flag --mesh=fsdp=2,expert=4; None of ''. UserError for anything else."""
  sizes = {}
  for item in filter(None, written.split(',')):
    axis, _, count = item.partition('=')
    if axis not in MESH_AXES or not count.isdecimal() or int(count) < 1:
      raise UserError(
        f'--mesh={written}: {item!r} must be AXIS=DEVICES, with one of {", ".join(MESH_AXES)}'
      )
    sizes[axis] = int(count)
  return sizes or None


def _mapping(config, where):
  if not isinstance(config, Mapping):
    raise UserError(f'{where} must be sections of keys, not {str(config)[:50]!r}')
  return config


def _made(flat):
  """The Config of a value for every key."""
  values = unflatten({name: checked(name, each, flat[name]) for name, each in KEYS.items()})
  made = Config(
    **{
      field.name: field.metadata['section'](**values[field.name])
      if field.metadata.get('section')
      else values[field.name]
      for field in dataclasses.fields(Config)
    }
  )
  if found := contradictions(made):
    raise UserError(found[0])
  return made
