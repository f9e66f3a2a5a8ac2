"""Dense models: DeepSeek 7B and 67B, LLaMA 2 and its kin (`LlamaForCausalLM`)."""

from typing import Any

from moe.config import Config
from moe.convert.hf_config import HFConfig
from moe.convert.layouts import common
from moe.convert.table import Entry
from moe.errors import UserError


def to_config(hf: HFConfig) -> dict[str, Any]:
  keys = common.attention_to_config(hf)
  return keys | dense(keys['model.num_layers'], hf.integer('intermediate_size'))


def dense(num_layers: int, d_ff: int) -> dict[str, Any]:
  """The keys of a model without experts."""
  return {
    'model.num_dense_layers': num_layers,
    'model.d_ff': d_ff,
    'moe.num_experts': 0,
    'moe.experts_per_token': 0,
    'moe.num_shared_experts': 0,
    'moe.d_expert': 0,
    'moe.expert_balance_weight': 0.0,
  }


def to_json(config: Config) -> dict[str, Any]:
  model = config.model
  if model.num_moe_layers:
    raise UserError(
      f'model.num_dense_layers={model.num_dense_layers} of {model.num_layers}: '
      'the layout llama has dense layers only'
    )
  return {
    'architectures': ['LlamaForCausalLM'],
    'model_type': 'llama',
    **common.attention_to_json(config),
    'head_dim': model.head_dim,
    'intermediate_size': model.d_ff,
    'mlp_bias': False,
  }


def tables(config: Config) -> dict[str, list[Entry]]:
  del config
  return {'per layer': common.outside_of_layers() + dense_blocks()}


def dense_blocks() -> list[Entry]:
  return common.of_blocks('dense_blocks', 0, common.swiglu('mlp', 'mlp'))


LAYOUT = common.Layout(
  to_config,
  to_json,
  tables,
  # The rotary frequencies, which older files store.
  derived=('model.layers.{layer}.self_attn.rotary_emb.inv_freq',),
)
