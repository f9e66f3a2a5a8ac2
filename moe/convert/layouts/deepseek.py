"""DeepSeekMoE 16B and its kin (`DeepseekForCausalLM`). Every expert has tensors of its own; files
with a layer's experts stacked can be read too.

The routed experts of a layer are `mlp.experts.0…E−1`, or, stacked, gate_up_proj [E, 2F, D]
and down_proj [E, D, F]. The shared experts are one FFN, in the file as here.
"""

from typing import Any

from moe.config import Config
from moe.convert.hf_config import HFConfig
from moe.convert.layouts import common, llama
from moe.convert.table import Entry
from moe.errors import UserError


def to_config(hf: HFConfig) -> dict[str, Any]:
  keys = common.attention_to_config(hf)
  layers = keys['model.num_layers']
  hf.must('scoring_func', 'softmax')
  hf.must('norm_topk_prob', False)
  hf.must('moe_layer_freq', 1)
  # Later models give these keys other values; here each has only this one.
  hf.must('topk_method', 'greedy')
  hf.must('routed_scaling_factor', 1.0)
  hf.must('n_group', 1)
  hf.must('topk_group', 1)
  balance = {
    'moe.expert_balance_weight': hf.real('aux_loss_alpha', 0.001),
    'moe.balance_scope': 'sequence' if hf.flag('seq_aux', True) else 'batch',
  }
  if hf.get('n_routed_experts') is None:
    unused = (
      'n_shared_experts',
      'num_experts_per_tok',
      'moe_intermediate_size',
      'first_k_dense_replace',
    )
    for key in unused:
      hf.get(key)
    return keys | llama.dense(layers, hf.integer('intermediate_size'))
  dense = min(hf.integer('first_k_dense_replace'), layers)
  if dense == layers:
    raise hf.refused(
      'first_k_dense_replace', f'below num_hidden_layers={layers}: experts need a layer'
    )
  return keys | balance | {
    'model.num_dense_layers': dense,
    'model.d_ff': hf.integer('intermediate_size', None if dense else 0),
    'moe.num_experts': hf.integer('n_routed_experts'),
    'moe.experts_per_token': hf.integer('num_experts_per_tok'),
    'moe.num_shared_experts': hf.integer('n_shared_experts', 0),
    'moe.d_expert': hf.integer('moe_intermediate_size'),
  }  # fmt: skip


def to_json(config: Config) -> dict[str, Any]:
  model, moe = config.model, config.moe
  # The layout has no keys for other kinds of routing that other programs would read.
  for name, value in common.not_of_the_paper(moe):
    raise UserError(
      f'moe.{name}={getattr(moe, name)!r}: in the layout deepseek routers are as the paper has '
      f'them, moe.{name}={value!r}'
    )
  if not moe.num_experts:
    raise UserError('moe.num_experts=0: the layout deepseek has no layers of shared experts alone')
  if model.num_heads * model.head_dim != model.d_model:
    raise UserError(
      f'model.head_dim={model.head_dim}: in the layout deepseek it is '
      f'model.d_model / model.num_heads = {model.d_model / model.num_heads:g}'
    )
  return {
    'architectures': ['DeepseekForCausalLM'],
    'model_type': 'deepseek',
    **common.attention_to_json(config),
    'intermediate_size': model.d_ff,
    'moe_intermediate_size': moe.d_expert,
    'n_routed_experts': moe.num_experts,
    'n_shared_experts': moe.num_shared_experts or None,
    'num_experts_per_tok': moe.experts_per_token,
    'first_k_dense_replace': model.num_dense_layers,
    'moe_layer_freq': 1,
    'norm_topk_prob': False,
    'scoring_func': 'softmax',
    'aux_loss_alpha': moe.expert_balance_weight,
    'seq_aux': moe.balance_scope == 'sequence',
  }


def tables(config: Config) -> dict[str, list[Entry]]:
  first = config.model.num_dense_layers
  others = {'moe.router.experts': 'mlp.gate.weight'} | common.swiglu(
    'moe.shared', 'mlp.shared_experts'
  )
  shared = common.outside_of_layers() + llama.dense_blocks()
  each = others | common.swiglu('moe.experts', 'mlp.experts.{expert}')
  stacked = {
    'moe.experts.gate': 'mlp.experts.gate_up_proj',
    'moe.experts.up': 'mlp.experts.gate_up_proj',
    'moe.experts.down': 'mlp.experts.down_proj',
  }
  parts = {'moe_blocks.moe.experts.gate': (0, 2), 'moe_blocks.moe.experts.up': (1, 2)}
  blocks = common.of_blocks('moe_blocks', first, others | stacked)
  return {
    'per expert': shared + common.of_blocks('moe_blocks', first, each),
    'stacked': shared
    + [
      entry._replace(part=part, parts=of)
      for entry in blocks
      for part, of in [parts.get(entry.parameter, (0, 1))]
    ],
  }


LAYOUT = common.Layout(to_config, to_json, tables, derived=llama.LAYOUT.derived)
