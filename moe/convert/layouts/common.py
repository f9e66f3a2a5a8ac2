"""What the layouts share: `Layout`, and the keys and tensors of everything but the FFNs."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from moe.config import Config, MoEConfig
from moe.convert.hf_config import HFConfig
from moe.convert.table import Entry
from moe.errors import UserError

_ROPE_BASE = 10_000.0  # for a config.json that is older than the key
# How the paper chooses and weights experts, by key of `moe`. A new key that changes what a trained
# model computes must be added here.
_OF_THE_PAPER = {
  'router': 'softmax',
  'normalize_gates': False,
  'gate_scale': 1.0,
  'gate_mass': 1.0,
  'balancing': 'none',
  'device_limit': 0,
  'shared_gate': False,
  'wide_experts': 0,
}


class Layout(NamedTuple):
  """How one family of checkpoints describes a model and stores its parameters."""

  # config.json → {dotted key of Config: value}. UserError for what the model cannot express.
  to_config: Callable[[HFConfig], dict[str, Any]]
  # Config → config.json, without types and token ids. UserError for what the layout cannot express.
  to_json: Callable[[Config], dict[str, Any]]
  # The tables of a model. Export uses the first one; the others hold the same parameters in other
  # tensors.
  tables: Callable[[Config], dict[str, Sequence[Entry]]]
  # Tensors of some files that are no parameters: they follow from config.json.
  derived: tuple[str, ...] = ()


def not_of_the_paper(moe: MoEConfig) -> Iterator[tuple[str, object]]:
  """Yields (key, the paper's value) for every key of _OF_THE_PAPER with another value."""
  for name, value in _OF_THE_PAPER.items():
    if getattr(moe, name) != value:
      yield name, value


def attention_to_config(hf: HFConfig) -> dict[str, Any]:
  """The Config keys of everything but the FFNs, by dotted name."""
  d_model, heads = hf.integer('hidden_size'), hf.integer('num_attention_heads')
  seq_len = hf.integer('max_position_embeddings')
  if hf.get('head_dim') is None and d_model % heads:
    raise hf.refused('num_attention_heads', f'a divisor of hidden_size={d_model}')
  hf.must('hidden_act', 'silu')
  for key in ('attention_bias', 'mlp_bias', 'tie_word_embeddings'):
    hf.must(key, False)
  for key in ('attention_dropout', 'hidden_dropout', 'embd_pdrop', 'resid_pdrop'):
    hf.must(key, 0.0)
  for key in ('rope_scaling', 'quantization_config', 'sliding_window'):
    if hf.get(key) is not None:
      raise hf.refused(key, 'null, all that this model can do')
  hf.must('partial_rotary_factor', 1.0)
  return {
    'model.vocab_size': hf.integer('vocab_size'),
    'model.num_layers': hf.integer('num_hidden_layers'),
    'model.d_model': d_model,
    'model.num_heads': heads,
    'model.num_kv_heads': hf.integer('num_key_value_heads', heads),
    'model.head_dim': hf.integer('head_dim', d_model // heads),
    'model.rope_base': _rope_base(hf),
    'model.norm_eps': hf.real('rms_norm_eps'),
    'model.init_std': hf.real('initializer_range', 0.02),
    'data.seq_len': seq_len,
    # A step must have fewer than 2³¹ tokens, however long the context.
    'data.batch_size': min(2048, (2**31 - 1) // max(seq_len, 1)),
  }


def attention_to_json(config: Config) -> dict[str, Any]:
  """The inverse of `attention_to_config`."""
  model = config.model
  if config.ops.force_balanced_routing:
    raise UserError(
      'ops.force_balanced_routing=True: such a run was for measuring, its weights mean nothing'
    )
  return {
    'vocab_size': model.vocab_size,
    'num_hidden_layers': model.num_layers,
    'hidden_size': model.d_model,
    'num_attention_heads': model.num_heads,
    'num_key_value_heads': model.num_kv_heads,
    'hidden_act': 'silu',
    'rope_theta': model.rope_base,
    'rope_scaling': None,
    'rms_norm_eps': model.norm_eps,
    'initializer_range': model.init_std,
    'max_position_embeddings': config.data.seq_len,
    'attention_bias': False,
    'attention_dropout': 0.0,
    'tie_word_embeddings': False,
    'use_cache': True,
  }


def outside_of_layers() -> list[Entry]:
  return [
    Entry('embedding', 'model.embed_tokens.weight', transposed=False),
    Entry('final_norm.scale', 'model.norm.weight', transposed=False),
    Entry('head', 'lm_head.weight'),
  ]


def of_blocks(stack: str, first_layer: int, ffn: dict[str, str]) -> list[Entry]:
  """The table's entries for a stack of blocks. `ffn`: {parameter within the block: tensor within
  the layer}.
  """
  norms = {'attention_norm': 'input_layernorm', 'ffn_norm': 'post_attention_layernorm'}
  matrices = {
    f'attention.{here}': f'self_attn.{there}_proj.weight'
    for here, there in (('query', 'q'), ('key', 'k'), ('value', 'v'), ('out', 'o'))
  }
  prefix = 'model.layers.{layer}.'
  entries = [
    Entry(f'{stack}.{here}.scale', f'{prefix}{there}.weight', False, first_layer)
    for here, there in norms.items()
  ]
  return entries + [
    Entry(f'{stack}.{here}', f'{prefix}{there}', True, first_layer)
    for here, there in (matrices | ffn).items()
  ]


def swiglu(here: str, there: str) -> dict[str, str]:
  """The three matrices of a SwiGLU FFN, as `of_blocks` takes them."""
  return {f'{here}.{name}': f'{there}.{name}_proj.weight' for name in ('gate', 'up', 'down')}


def _rope_base(hf):
  """The RoPE base, from rope_theta or the newer rope_parameters."""
  base, newer = hf.real('rope_theta', _ROPE_BASE), hf.get('rope_parameters')
  if newer is None:
    return base
  if not isinstance(newer, dict):
    raise hf.refused('rope_parameters', 'an object')
  inner = HFConfig(newer, 'rope_parameters of config.json')
  inner.must('rope_type', 'default')
  inner.must('partial_rotary_factor', 1.0)
  base = inner.real('rope_theta', base)
  inner.finish()
  return base
