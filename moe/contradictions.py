"""Finds keys of a config that contradict each other; a single key's range is declared beside it.

`moe/config.py` calls it. A check takes the whole Config (`c`) and yields a line for each
contradiction.
"""

from collections.abc import Iterator

from moe import expert_choice
from moe.keys import ATTENTION_TARGETS, MESH_AXES

# Matrices that `finetune.lora_targets` may name; attention stands for the four before it.
LORA_TARGETS = (*ATTENTION_TARGETS, 'attention', 'experts')


def contradictions(c) -> list[str]:
  """Every contradiction in a `moe.config.Config`, a line each that names
  the keys and their values.
  """
  return [message for check in _CHECKS for message in check(c)]


def _of_the_mesh(c) -> Iterator[str]:
  if sum(getattr(c.mesh, axis) == -1 for axis in MESH_AXES) > 1:
    listed = ', '.join(f'mesh.{axis}' for axis in MESH_AXES)
    yield f'only one of {listed} may be -1, which is filled with what is left'


def _of_the_heads(c) -> Iterator[str]:
  m = c.model
  if m.num_heads % m.num_kv_heads:
    yield (f'model.num_heads={m.num_heads} is not divisible by model.num_kv_heads={m.num_kv_heads}')
  if m.head_dim % 2:
    yield f'model.head_dim={m.head_dim} must be even: rotary embedding turns pairs'


def _of_the_profile(c) -> Iterator[str]:
  steps = c.train.profile_steps
  if steps and (len(steps) != 2 or steps[0] > steps[1] or any(step % 1 for step in steps)):
    yield (
      f'train.profile_steps={steps} must be the first and the last step to trace, such as (20, 22)'
    )


def _of_the_dense_layers(c) -> Iterator[str]:
  m = c.model
  if m.num_dense_layers > m.num_layers:
    yield (
      f'model.num_dense_layers={m.num_dense_layers} is more than model.num_layers={m.num_layers}'
    )
  if m.num_dense_layers and not m.d_ff:
    yield (
      f'model.num_dense_layers={m.num_dense_layers} needs model.d_ff, '
      'the width of their FFN, above 0'
    )


def _of_the_moe_layers(c) -> Iterator[str]:
  if c.model.num_dense_layers == c.model.num_layers:
    return
  if not c.moe.num_experts + c.moe.num_shared_experts:
    yield (
      'moe.num_experts and moe.num_shared_experts are both 0: '
      'the layers after model.num_dense_layers have no FFN'
    )
  if not c.moe.d_expert:
    yield f'moe.d_expert={c.moe.d_expert} must be greater than 0'


def _of_the_experts(c) -> Iterator[str]:
  e = c.moe
  if e.experts_per_token > e.num_experts:
    yield (
      f'moe.experts_per_token={e.experts_per_token} is more than moe.num_experts={e.num_experts}'
    )
  if e.num_experts and not e.experts_per_token:
    yield (
      f'moe.experts_per_token={e.experts_per_token} must be at least 1 '
      f'when moe.num_experts={e.num_experts}'
    )
  if e.num_experts % e.device_groups:
    yield f'moe.device_groups={e.device_groups} does not divide moe.num_experts={e.num_experts}'
  elif e.device_limit:
    if e.device_limit > e.device_groups:
      yield f'moe.device_limit={e.device_limit} is more than moe.device_groups={e.device_groups}'
    elif e.device_limit * (e.num_experts // e.device_groups) < e.experts_per_token:
      yield (
        f'moe.device_limit={e.device_limit} groups of {e.num_experts // e.device_groups} experts '
        f'are fewer than moe.experts_per_token={e.experts_per_token}'
      )
  if e.wide_experts > e.num_experts:
    yield f'moe.wide_experts={e.wide_experts} is more than moe.num_experts={e.num_experts}'
  if e.is_unequal and e.device_groups > 1:
    yield (
      f'moe.wide_experts={e.wide_experts} does not go with moe.device_groups={e.device_groups}: '
      'groups of experts of one width are what devices hold'
    )
  if e.gate_mass < 1 and c.ops.force_balanced_routing:
    yield (
      f'moe.gate_mass={e.gate_mass} does not go with ops.force_balanced_routing=True: '
      'experts that a token does not take have no load to balance'
    )
  for name, nothing in (('balancing', 'none'), ('gate_mass', 1.0)) if not e.num_experts else ():
    if getattr(e, name) != nothing:
      yield f'moe.{name}={getattr(e, name)!r}: moe.num_experts=0, nothing is routed'
  if e.shared_gate and not e.num_shared_experts:
    yield 'moe.shared_gate=True: moe.num_shared_experts=0, there is nothing to weight'
  if e.router == 'hash':
    for name, nothing in (('balancing', 'none'), ('device_limit', 0), ('gate_mass', 1.0)):
      if getattr(e, name) != nothing:
        yield f'moe.{name}={getattr(e, name)} does not go with moe.router=hash'
  if e.balancing == 'quantile' and e.experts_per_token == e.num_experts:
    yield 'moe.balancing=quantile: with moe.experts_per_token=moe.num_experts nothing is chosen'


def _of_the_batch(c) -> Iterator[str]:
  d = c.data
  if c.tokenizer_vocab_size > c.model.vocab_size:
    yield f'data.vocab_size={d.vocab_size} is more than model.vocab_size={c.model.vocab_size}'
  if d.batch_size % c.train.microbatches:
    yield (
      f'train.microbatches={c.train.microbatches} does not divide data.batch_size={d.batch_size}'
    )
  if d.batch_size * d.seq_len >= 2**31:
    yield (
      f'data.batch_size={d.batch_size} × data.seq_len={d.seq_len} tokens a step are more than '
      'the 2³¹ that can be counted'
    )


def _of_the_conversations(c) -> Iterator[str]:
  if c.data.format == 'chat' and not c.data.reset_at_documents:
    yield (
      'data.reset_at_documents=False: conversations that share a sequence never see each other: '
      'leave it True where data.format=chat'
    )


def _of_the_warm_start(c) -> Iterator[str]:
  if c.train.init_optimizer and c.finetune.lora_rank:
    yield (
      'train.init_optimizer=True takes the state of parameters, and adapters '
      f'(finetune.lora_rank={c.finetune.lora_rank}) begin anew: leave it out'
    )
  for name in ('init_skip', 'init_optimizer', 'init_data'):
    if getattr(c.train, name) and not c.train.init_from:
      yield f'train.{name}={getattr(c.train, name)!r} needs train.init_from, the run to start from'


def _of_the_fine_tuning(c) -> Iterator[str]:
  f = c.finetune
  if not c.has_routed_experts:
    if f.trainable in ('router_frozen', 'experts'):
      yield f'finetune.trainable={f.trainable} needs routed experts: this model has none'
    elif f.experts:
      yield f'finetune.experts={f.experts} needs routed experts: this model has none'
  if wrong := [each for each in f.lora_targets if each not in LORA_TARGETS]:
    yield (
      f'finetune.lora_targets: {wrong[0]!r} has no adapters: there are {", ".join(LORA_TARGETS)}'
    )
  if f.trainable == 'lora' and not (f.lora_rank and f.lora_targets):
    yield 'finetune.trainable=lora needs finetune.lora_rank above 0, and finetune.lora_targets'
  if f.lora_rank and f.trainable not in ('lora', 'experts'):
    yield (
      f'finetune.lora_rank={f.lora_rank} goes with finetune.trainable=lora or experts: under '
      f'{f.trainable} the matrices themselves are trained'
    )
  adapts_experts = f.lora_rank and 'experts' in f.lora_targets
  if f.trainable == 'experts' and adapts_experts:
    yield (
      "finetune.lora_targets has 'experts', which finetune.trainable=experts trains themselves: "
      'use finetune.trainable=lora, or leave them out'
    )
  chooses = f.trainable == 'experts' or (f.trainable == 'lora' and adapts_experts)
  why = 'experts' if f.trainable == 'experts' else "lora with 'experts' in finetune.lora_targets"
  if chooses and not f.experts:
    yield (
      f'finetune.trainable={why} needs finetune.experts, a file of launch.select_experts or the '
      "experts of each MoE layer, '3,17;2;;40'"
    )
  if f.experts and not chooses:
    yield (
      f'finetune.experts={f.experts!r} chooses what finetune.trainable={f.trainable} does not '
      'train: leave it out'
    )
  if f.experts and not expert_choice.is_file(f.experts):
    yield from expert_choice.faults(c, expert_choice.parse(f.experts))


_CHECKS = (
  _of_the_mesh,
  _of_the_heads,
  _of_the_profile,
  _of_the_dense_layers,
  _of_the_moe_layers,
  _of_the_experts,
  _of_the_batch,
  _of_the_conversations,
  _of_the_warm_start,
  _of_the_fine_tuning,
)
