"""Declares every configuration key once: type, default, meaning, unit and range.

The defaults are the paper's 2B DeepSeekMoE (Table 7). `experiments/base.py` hands them out as a
ConfigDict; `from_config_dict` checks what comes back and makes a `Config`, a frozen dataclass.
docs/configuration.md is made from this file:

  python -m launch.describe --keys > docs/configuration.md

A new key is one line. Its default, or else its `before=`, is what runs did before the key existed:
old runs are read with it. A renamed key leaves its old name in ALIASES. No jax import.
"""

import dataclasses
import functools
import itertools
from collections.abc import Mapping
from typing import Literal

from ml_collections import ConfigDict

from moe.contradictions import contradictions
from moe.errors import UserError

# `differences`, `listed` and `flatten` are re-exported for code that compares configs.
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
# Types that trained parameters may be loaded as. FEW_BITS are for programs that only run them.
FEW_BITS = ('int8', 'int4')
STORED_TYPES = ('bfloat16', 'float32', *FEW_BITS)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  vocab_size: int = key(
    8000, 'vocabulary size of the embedding and the output head', at_least=1, at_most=2**24
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
    128, 'width of a head; even, since rotary embeddings rotate pairs', at_least=1, at_most=2**16
  )
  num_dense_layers: int = key(
    0, 'leading layers that have one dense FFN instead of experts', at_least=0, at_most=10_000
  )
  d_ff: int = key(0, 'FFN hidden width of those dense layers', at_least=0, at_most=2**24)
  rope_base: float = key(10_000.0, 'base of the rotary frequencies', at_least=1, at_most=1e12)
  norm_eps: float = key(1e-6, 'ε of RMSNorm, added to the mean square', above=0, at_most=1)
  init_std: float = key(
    0.006, 'every matrix starts from N(0, init_std²) (Section 4.1.3)', at_least=0, at_most=100
  )
  dtype: Literal['bfloat16', 'float32'] = key(
    'bfloat16', 'compute type; parameters, routing, norms and loss are float32'
  )
  remat: Literal['none', 'full', 'dots', 'moe'] = key(
    'none',
    'rematerialisation: what the backward pass recomputes; none: nothing; full: everything; dots: '
    'all but matmul outputs; moe: only MoE layers',
    effect=ROUNDING,
  )
  unroll: int = key(
    0,
    'layers per iteration of the scan over layers: more compile longer but copy less between '
    'iterations; 0: all on one CPU if they are few and nothing is recomputed, else 1',
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
  experts_per_token: int = key(
    7, 'routed experts per token (top-k), mK − K_s in the paper', at_least=0, at_most=2**16
  )
  num_shared_experts: int = key(
    1, 'shared experts, which see every token; K_s in the paper', at_least=0, at_most=2**16
  )
  shared_gate: bool = key(
    False, "multiplies the shared experts' output by σ(u · w), one number per token (Qwen1.5-MoE)"
  )
  d_expert: int = key(
    856, 'hidden width of one expert, routed or shared', at_least=0, at_most=2**24
  )
  wide_experts: int = key(
    0,
    'number of wide experts: the first routed experts, wide_factor times as wide as d_expert',
    at_least=0,
    at_most=2**16,
  )
  wide_factor: int = key(2, 'width of wide experts, in units of d_expert', at_least=2, at_most=64)
  router: Literal['softmax', 'sigmoid', 'hash'] = key(
    'softmax',
    'how experts are chosen; softmax: top-k of the affinities, a softmax over all experts (Eq. '
    '7–11); sigmoid: top-k of σ(u · e), which scores each expert by itself, as in DeepSeek-V3; '
    'hash: a fixed hash of the token id, gates are 1',
  )
  normalize_gates: bool = key(
    False,
    "divides a token's gates by their sum, so that they add up to 1; with router=softmax this "
    'equals a softmax over the chosen experts',
  )
  gate_scale: float = key(
    1.0, 'factor that gates are multiplied by, after normalize_gates', above=0, at_most=1e3
  )
  gate_mass: float = key(
    1.0,
    'adaptive K (top-p routing, arXiv 2403.07652): a token takes the fewest of its '
    'experts_per_token best experts that hold this share of their summed affinities; 1: all of '
    'them',
    above=0,
    at_most=1,
  )
  balancing: Literal['none', 'bias', 'quantile'] = key(
    'none',
    'balancing without a loss, by a bias per expert that affects the choice but not the gates; '
    'none: no bias; bias: each step moves it by bias_update_rate, up for experts with less than '
    'the mean load, down for the others (arXiv 2408.15664); quantile: each step sets it from the '
    'quantile that would have balanced the last batch',
  )
  bias_update_rate: float = key(
    0.001, 'balancing=bias: how far a bias moves per step', at_least=0, at_most=1
  )
  device_limit: int = key(
    0,
    "device-limited routing: the most groups (device_groups) that a token's experts may come "
    'from; 0: no limit',
    at_least=0,
    at_most=2**16,
  )
  hash_seed: int = key(
    0, 'router=hash: seed of the table of experts by token id', at_least=0, at_most=LARGEST_SEED
  )
  expert_balance_weight: float = key(
    0.01, 'weight of the expert-level balance loss, α1 of Eq. 12', at_least=0, at_most=1e6
  )
  device_balance_weight: float = key(
    0.0, 'weight of the device-level balance loss, α2 of Eq. 15', at_least=0, at_most=1e6
  )
  device_groups: int = key(
    1,
    'groups of consecutive experts, for the device-level balance loss (D of Eq. 15) and '
    'device_limit; must divide num_experts; independent of the mesh',
    at_least=1,
    at_most=2**16,
  )
  balance_scope: Literal['sequence', 'batch'] = key(
    'sequence',
    'tokens that a balance loss counts, T of Eq. 13–14; sequence: each sequence (row) of the '
    'batch, then averaged over sequences; batch: the whole batch',
  )
  router_z_weight: float = key(
    0.0, 'weight of the router z-loss, mean(logsumexp(router logits)²)', at_least=0, at_most=1e6
  )

  @property
  def units_of_experts(self) -> tuple[int, ...]:
    """The width of every routed expert in units of d_expert. Weights are stored by unit."""
    narrow = self.num_experts - self.wide_experts
    return (self.wide_factor,) * self.wide_experts + (1,) * narrow

  @property
  def first_units(self) -> tuple[int, ...]:
    """The index of every routed expert's first unit among the units of all."""
    return tuple(itertools.accumulate(self.units_of_experts[:-1], initial=0))

  @property
  def num_units(self) -> int:
    """The number of units of all routed experts together."""
    return sum(self.units_of_experts)

  @property
  def mean_units(self) -> float:
    """The mean number of units of a routed expert."""
    return self.num_units / max(self.num_experts, 1)

  @property
  def max_units(self) -> int:
    """The largest number of units of a routed expert."""
    return max(self.units_of_experts, default=1)

  @property
  def is_unequal(self) -> bool:
    """Whether experts differ in width."""
    return 0 < self.wide_experts < self.num_experts


@dataclasses.dataclass(frozen=True)
class OpsConfig:
  implementation: Literal['auto', 'reference', 'xla', 'pallas_tpu', 'pallas_gpu'] = key(
    'auto',
    'implementation of every op in moe/ops; auto: by platform, Pallas kernels where they can run, '
    'else xla; reference: simple, to compare with; any choice but auto fails if it cannot run',
    effect=ROUNDING,
  )
  force_balanced_routing: bool = key(
    False,
    'for benchmarks only: spreads tokens evenly over the experts, whatever the router chooses; '
    "gates and gradients stay the router's",
  )


_axis = functools.partial(key, at_least=1, at_most=2**20, fill=-1, unit='devices')


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  data: int = _axis(-1, 'data parallelism: copies of the model, each with a part of the batch')
  fsdp: int = _axis(
    1, 'ZeRO data parallelism: splits the batch, parameters and optimizer state; see mesh.zero'
  )
  expert: int = _axis(
    1, 'expert parallelism: splits the routed experts; for all else it is one more data axis'
  )
  tensor: int = _axis(1, 'tensor parallelism: splits heads, FFN widths and vocabulary')
  stage: int = _axis(
    1, 'pipeline parallelism: splits the layers into stages, which train.microbatches pass through'
  )
  zero: Literal[1, 3] = key(
    3, 'ZeRO stage: what fsdp splits; 1: optimizer state only; 3: parameters and optimizer state'
  )
  transport: Literal['auto', 'ragged', 'padded', 'all_gather'] = key(
    'auto',
    "how tokens reach their experts' devices; auto: ragged if the machine has it, else padded; "
    'ragged: an all-to-all of only the tokens sent, on TPU and GPU; padded: an all-to-all of '
    'whole buffers, anywhere; all_gather: every token to every device, for few devices',
  )
  receive_buffer: float = key(
    1.5,
    "a device's room for tokens, as a multiple of its share under balanced routing; tokens beyond "
    'it come in further rounds',
    at_least=1,
    at_most=2**16,
  )


@dataclasses.dataclass(frozen=True)
class DataConfig:
  format: Literal['text', 'chat'] = key(
    'text', 'kind of sources; text: documents; chat: conversations as JSON (docs/chat.md)'
  )
  sources: str = key(
    'builtin',
    "text to train on: 'builtin' (Python's standard library, its documentation and arithmetic), "
    "or DOMAIN[@WEIGHT][:TEXT_KEY]=FILES, several separated by ';'; FILES is a file, a folder or "
    'a glob with *, **, [ab], {a,b}, {00..09} and ~; plain text, JSON, CSV or Parquet, also '
    'compressed as .gz, .zst, .bz2 or .xz',
  )
  validation_sources: str = key(
    '', "held-out text, written like `sources`; '': hold out whole documents of `sources`"
  )
  holdout: float = key(
    0.02,
    "share of documents to hold out, chosen by a hash of their text (builtin: of their file's "
    'path); a domain with too few documents for that holds out the end of its longest',
    at_least=0,
    below=1,
  )
  text_key: str = key(
    'text',
    'field of a JSON row, or column of a CSV or Parquet file, that holds the text; chat: the '
    "field that holds the messages, or PROMPT+RESPONSE for a pair of fields; 'text' then means "
    'messages, or prompt+response',
  )
  chat_template: Literal['deepseek', 'plain', 'tokenizer'] = key(
    'deepseek',
    'chat: how turns become text; deepseek: as deepseek-moe-16b-chat writes them; plain: the '
    "turns alone, each prompt followed by a line end; tokenizer: by the tokenizer's own "
    'chat_template, in Jinja',
  )
  learn_from: Literal['assistant', 'all'] = key(
    'assistant',
    'chat: tokens that the loss counts; assistant: replies and their ends; all: every token',
  )
  too_long: Literal['cut', 'drop'] = key(
    'cut',
    'chat: what becomes of conversations longer than seq_len; cut: they lose their end; drop: '
    'they are left out',
  )
  separator: str = key(
    '', "cuts plain-text files into documents, \\n is a line end; '': a file is one document"
  )
  bad_rows: Literal['refuse', 'skip'] = key(
    'refuse',
    'what to do with rows that are not text; refuse: stop with an error; skip: leave them out and '
    'report how many',
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
    "folder of prepared data, read if it exists and else written; several runs may share it; '': "
    'WORKDIR/data',
    effect=NOTHING,
  )
  tokenizer: str = key(
    '',
    "an existing SentencePiece .model or tokenizer.json; '': train one on the corpus, or with "
    "train.init_from take the source's",
  )
  vocab_size: int = key(
    0,
    'pieces of the tokenizer; 0: model.vocab_size, or fewer if data.tokenizer has fewer',
    at_least=0,
    at_most=2**24,
  )
  tokenizer_sample_mb: float = key(
    10.0,
    'how much training text a new tokenizer is trained on',
    unit='MB, 10⁶ bytes',
    above=0,
    at_most=100_000,
  )
  seq_len: int = key(2048, 'length of a sequence', unit='tokens', at_least=1, at_most=2**24)
  batch_size: int = key(
    2048,
    'global batch size: sequences per step, over all devices and microbatches',
    at_least=1,
    at_most=2**24,
  )
  reset_at_documents: bool = key(
    True, 'attention and rotary positions restart at document boundaries'
  )
  seed: int = key(
    0, 'seed of the order of documents, sequences and domains', at_least=0, at_most=LARGEST_SEED
  )
  num_threads: int = key(
    2,
    'threads that read and pack batches; never changes what a step sees',
    at_least=1,
    at_most=1024,
    effect=NOTHING,
  )
  prefetch: int = key(8, 'batches to prefetch', at_least=1, at_most=4096, effect=NOTHING)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  name: Literal['adamw'] = key('adamw', 'how gradients become updates')
  peak_lr: float = key(1.08e-3, 'peak learning rate', above=0, at_most=1000)
  schedule: Literal['step_decay', 'constant', 'cosine'] = key(
    'step_decay',
    'learning rate after warm-up; step_decay: times decay_factor at each of decay_at; constant: '
    'peak_lr; cosine: half a cosine from peak_lr to final_lr_fraction of it',
  )
  warmup_steps: int = key(
    2000, 'length of the linear warm-up of the learning rate from 0', unit='steps', at_least=0
  )
  start_step: int = key(
    0,
    'step of the schedule at which the run begins: the schedule has start_step + train.num_steps '
    'steps, and the run takes the last train.num_steps',
    unit='steps',
    at_least=0,
    at_most=2**30,
  )
  decay_at: tuple[float, ...] = key(
    (0.8, 0.9),
    'step_decay: shares of the schedule at which the learning rate is multiplied by decay_factor',
    above=0,
    at_most=1,
  )
  decay_factor: float = key(
    0.316, 'step_decay: factor on the learning rate at each of decay_at', at_least=0, at_most=1
  )
  final_lr_fraction: float = key(
    0.1, 'cosine: final learning rate, as a share of peak_lr', at_least=0, at_most=1
  )
  b1: float = key(0.9, "Adam's β1: decay of the mean gradient", at_least=0, below=1)
  b2: float = key(0.95, "Adam's β2: decay of the mean squared gradient", at_least=0, below=1)
  eps: float = key(
    1e-8, "Adam's ε: added to the root of the mean squared gradient", above=0, at_most=1
  )
  weight_decay: float = key(
    0.1, 'AdamW weight decay, on matrices, not on norm scales', at_least=0, at_most=1000
  )
  clip_norm: float = key(1.0, 'largest global gradient norm; 0: no clipping', at_least=0)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  num_steps: int = key(25_000, 'length of the run', unit='steps', at_least=1)
  seed: int = key(0, 'seed of the initial parameters', at_least=0, at_most=LARGEST_SEED)
  init_from: str = key(
    '',
    'warm start: DIR[:STEP], the folder of another run or of converted weights, whose weights are '
    'the initial parameters; without STEP the newest checkpoint that can be read; a DIR whose own '
    "name ends in :NUMBER is written with a ':' at its end; '': random parameters",
  )
  init_skip: tuple[str, ...] = key(
    (),
    'init_from: glob patterns of parameter paths not to take, whose * also matches /; these '
    'parameters are initialised anew, or left out if this model lacks them',
  )
  init_optimizer: bool = key(
    False, 'init_from: take the optimizer state too; False: it starts at 0'
  )
  init_data: bool = key(
    False,
    'init_from: continue the text where the source stopped, with the same text and batches; '
    'False: start at its beginning',
  )
  microbatches: int = key(
    1,
    'gradient accumulation: number of parts that a batch is computed in; must divide '
    'data.batch_size; never changes the loss',
    at_least=1,
    effect=ROUNDING,
  )
  log_every: int = key(
    10,
    'interval between metrics; other steps do not wait for the device',
    unit='steps',
    at_least=1,
    effect=NOTHING,
  )
  writers: str = key(
    'tensorboard',
    "metric writers beside metrics.jsonl, separated by commas: tensorboard, wandb; '': none",
    effect=NOTHING,
  )
  profile_steps: tuple[float, ...] = key(
    (),
    'first and last step to trace into WORKDIR/profile; (): none',
    at_least=1,
    effect=NOTHING,
  )
  heatmap_every: int = key(
    500,
    "interval between records of the experts' loads, in metrics.jsonl and as a heatmap in the "
    'writers; 0: only at the last step',
    unit='steps',
    at_least=0,
    effect=NOTHING,
  )
  loss_chunk: int = key(
    2048,
    'tokens whose logits are in memory at once',
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
    'which parameters are trained; all: every parameter; router_frozen: all but the routers; '
    'experts: the routed experts that finetune.experts names, and adapters if lora_rank is above '
    '0; lora: adapters alone; frozen parameters stay bit for bit the same and have no optimizer '
    'state',
  )
  experts: str = key(
    '',
    'chosen experts of each MoE layer: a file of launch.select_experts, or text such as '
    "'3,17;2;;40' with ';' between layers; a run stores the choice itself; '': none",
  )
  lora_rank: int = key(
    0,
    'rank r of the adapters (LoRA, arXiv 2106.09685): a matrix W is used as W + lora_alpha/r · A '
    'B, and A and B are trained; 0: no adapters',
    at_least=0,
    at_most=2**16,
  )
  lora_alpha: float = key(
    16.0, 'α of the adapters: A B is multiplied by lora_alpha/lora_rank', above=0, at_most=1e6
  )
  lora_targets: tuple[str, ...] = key(
    ('attention',),
    'matrices that get adapters: query, key, value, out, or attention for all four; experts: the '
    'matrices of the experts in finetune.experts',
  )


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
  every_steps: int = key(
    1000,
    'interval between held-out losses while training; 0: only at the end, and at every checkpoint '
    'if checkpoint.keep_best is above 0',
    unit='steps',
    at_least=0,
  )
  batch_size: int = key(16, 'sequences per evaluation batch', at_least=1, at_most=2**24)
  max_batches: int = key(
    32, 'batches per domain while training; launch.evaluate scores everything', at_least=1
  )
  context: float = key(
    0.5,
    'documents longer than a sequence are scored in overlapping windows: the share of a window '
    'that is only context, scored by the window before',
    at_least=0,
    below=1,
  )
  tasks: str = key(
    '',
    'benchmarks to score at every evaluation, separated by commas, named as in launch.evaluate '
    "--tasks; '': none",
  )
  task_limit: int = key(100, 'rows to score of each task', at_least=1, at_most=2**24)
  task_data: str = key(
    '', "folder with the tasks' rows, TASK/SPLIT.jsonl; '': from the Hugging Face hub"
  )


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
  every_steps: int = key(1000, 'interval between checkpoints', unit='steps', at_least=1)
  keep_last: int = key(2, 'number of most recent checkpoints to keep', at_least=1)
  keep_best: int = key(
    1,
    'number of checkpoints of lowest held-out loss to keep as well; the loss is then measured at '
    'every checkpoint; 0: none',
    at_least=0,
  )


@dataclasses.dataclass(frozen=True)
class Config:
  """The configuration of one run."""

  name: str = key('base', 'name of the run in logs and reports', effect=NOTHING)
  model: ModelConfig = section(ModelConfig, 'The Transformer')
  moe: MoEConfig = section(MoEConfig, 'Experts, routing and load balancing')
  ops: OpsConfig = section(OpsConfig, 'Implementations of the operations')
  mesh: MeshConfig = section(
    MeshConfig,
    'Devices along each mesh axis: their product is the number of devices, and an axis of -1 '
    'takes the devices that are left',
    NOTHING,
  )
  data: DataConfig = section(DataConfig, 'Text, tokenizer and batches')
  optimizer: OptimizerConfig = section(OptimizerConfig, 'AdamW and its learning rate')
  train: TrainConfig = section(TrainConfig, 'The training loop')
  finetune: FinetuneConfig = section(FinetuneConfig, 'Which part of the model is trained')
  evaluation: EvaluationConfig = section(EvaluationConfig, 'Held-out losses, benchmarks', NOTHING)
  checkpoint: CheckpointConfig = section(CheckpointConfig, 'Which checkpoints are kept', NOTHING)

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
  """The config that any version of this code has written: a run's config.json, a checkpoint's own.

  ALIASES renames old keys. Keys that did not exist yet take the value of what the code did then.
  `where`: the file, named in the UserError for unknown keys and wrong values.
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
  """What a key was called at first. It never changes, so identities made from keys, such as a hash
  of settings, use it.
  """
  return next((old for old, now in ALIASES.items() if now == name), name)


def affects_training(name: str) -> bool:
  """Whether a dotted key affects what training computes, rounding included."""
  return name not in KEYS or KEYS[name].effect != NOTHING


def must_stay(name: str) -> bool:
  """Whether a dotted key must keep its value when a run is resumed:
  it affects results by more than rounding.
  """
  return name not in KEYS or KEYS[name].effect == RESULTS


def keys() -> list[str]:
  """Every dotted key, e.g. 'model.d_model'."""
  return list(KEYS)


def unknown_key(name: str) -> UserError:
  """The error for a key that does not exist. It names the key's new name,
  or the nearest key if one is near.
  """
  if name in ALIASES:
    return UserError(f'config key {name!r} is now called {ALIASES[name]!r}')
  near = nearest(name, KEYS)
  hint = f'the nearest valid key is {near!r}' if near else 'docs/configuration.md lists the keys'
  return UserError(f'unknown config key {name!r}: {hint}')


def mesh_sizes(written: str) -> dict[str, int] | None:
  """{axis: devices} of a flag --mesh=fsdp=2,expert=4; None for ''. UserError for anything else."""
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
  """The Config made of a value for every key. UserError for wrong values and contradictions."""
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
