"""config.json ↔ Config: published files equal the configs of experiments/scaling.py;
what either cannot express is refused.
"""

import dataclasses

import pytest

from experiments import scaling
from experiments.notebooks.released import DEEPSEEK
from moe.config import from_config_dict
from moe.convert.hf_config import HFConfig
from moe.convert.layouts import LAYOUTS, name_for
from moe.errors import UserError
from tests.moe.convert.hf_checkpoint import LLAMA
from tests.small import small_config

_COMMON = {
  'hidden_act': 'silu',
  'max_position_embeddings': 4096,
  'initializer_range': 0.02,
  'rms_norm_eps': 1e-6,
  'rope_theta': 10000.0,
  'rope_scaling': None,
  'attention_bias': False,
  'attention_dropout': 0.0,
  'tie_word_embeddings': False,
  'torch_dtype': 'bfloat16',
  'use_cache': True,
  'bos_token_id': 100000,
  'eos_token_id': 100001,
}
_LLAMA = _COMMON | {
  'architectures': ['LlamaForCausalLM'],
  'model_type': 'llama',
  'pretraining_tp': 1,
  'vocab_size': 102400,
}
# As published on the Hugging Face hub.
PUBLISHED = {
  'deepseek_moe_16b': _COMMON
  | {
    'architectures': ['DeepseekForCausalLM'],
    'model_type': 'deepseek',
    'vocab_size': 102400,
    'hidden_size': 2048,
    'intermediate_size': 10944,
    'moe_intermediate_size': 1408,
    'num_hidden_layers': 28,
    'num_attention_heads': 16,
    'num_key_value_heads': 16,
    'n_routed_experts': 64,
    'n_shared_experts': 2,
    'num_experts_per_tok': 6,
    'moe_layer_freq': 1,
    'first_k_dense_replace': 1,
    'norm_topk_prob': False,
    'scoring_func': 'softmax',
    'aux_loss_alpha': 0.001,
    'seq_aux': True,
  },
  'deepseek_7b': _LLAMA
  | {
    'hidden_size': 4096,
    'intermediate_size': 11008,
    'num_hidden_layers': 30,
    'num_attention_heads': 32,
    'num_key_value_heads': 32,
  },
  'deepseek_67b': _LLAMA
  | {
    'hidden_size': 8192,
    'intermediate_size': 22016,
    'num_hidden_layers': 95,
    'num_attention_heads': 64,
    'num_key_value_heads': 8,
  },
  'llama2_7b': _LLAMA
  | {
    'vocab_size': 32000,
    'hidden_size': 4096,
    'intermediate_size': 11008,
    'num_hidden_layers': 32,
    'num_attention_heads': 32,
    'num_key_value_heads': 32,
    'rms_norm_eps': 1e-5,
  },
}


def config_of(hf: dict) -> dict:
  reader = HFConfig(hf, 'config.json')
  keys = LAYOUTS[reader.get('model_type')].to_config(reader)
  reader.get('torch_dtype')
  reader.finish()
  return keys


@pytest.mark.parametrize('name', PUBLISHED)
def test_a_published_config_is_ours_key_by_key(name):
  keys, ours = config_of(PUBLISHED[name]), scaling.get_config(name)
  # init_std and the batch size belong to training, not to the model.
  beside = {'model.init_std', 'data.batch_size'}
  found = {key: ours[key.split('.')[0]][key.split('.')[1]] for key in keys}
  assert {k: v for k, v in keys.items() if k not in beside} == {
    k: v for k, v in found.items() if k not in beside
  }
  model_keys = {f'model.{field.name}' for field in dataclasses.fields(from_config_dict(ours).model)}
  assert model_keys - keys.keys() == {'model.dtype', 'model.remat', 'model.unroll'}


@pytest.mark.parametrize('name', PUBLISHED)
def test_our_config_is_written_as_the_published_one(name):
  config = from_config_dict(scaling.get_config(name))
  layout = name_for(config)
  written = LAYOUTS[layout].to_json(config)
  published = PUBLISHED[name] | {'initializer_range': 0.006}
  assert layout == published['model_type']
  assert {key: written[key] for key in written if key in published} == {
    key: published[key] for key in written if key in published
  }
  assert (
    not published.keys()
    - written.keys()
    - {*('torch_dtype', 'bos_token_id', 'eos_token_id', 'pretraining_tp')}
  )


@pytest.mark.parametrize(
  'changes, words',
  [
    ({'norm_topk_prob': True}, 'norm_topk_prob=True must be False'),
    ({'rope_scaling': {'type': 'linear', 'factor': 4.0}}, 'rope_scaling='),
    ({'attention_bias': True}, 'attention_bias=True'),
    ({'hidden_act': 'gelu'}, "hidden_act='gelu' must be 'silu'"),
    ({'scoring_func': 'sigmoid'}, 'scoring_func='),
    ({'moe_layer_freq': 2}, 'moe_layer_freq=2 must be 1'),
    ({'tie_word_embeddings': True}, 'tie_word_embeddings=True'),
    ({'topk_method': 'noaux_tc'}, 'topk_method='),
    ({'routed_scaling_factor': 2.5}, 'routed_scaling_factor=2.5'),
    ({'quantization_config': {'quant_method': 'fp8'}}, 'quantization_config='),
    ({'sliding_window': 4096}, 'sliding_window=4096'),
    ({'attention_dropout': 0.1}, 'attention_dropout=0.1'),
    ({'rope_parameters': {'rope_type': 'yarn', 'rope_theta': 1e4}}, "rope_type='yarn'"),
    ({'q_lora_rank': 512}, 'q_lora_rank=512'),
    ({'first_k_dense_replace': 3}, 'first_k_dense_replace=3'),
    ({'hidden_size': None}, 'no hidden_size'),
    ({'n_routed_experts': 'many'}, "n_routed_experts='many' must be an integer"),
    ({'num_attention_heads': 5}, 'num_attention_heads=5'),
  ],
)
def test_what_the_model_cannot_do_is_refused_by_name(changes, words):
  with pytest.raises(UserError, match='config') as error:
    config_of(DEEPSEEK | changes)
  assert words in str(error.value) and '\n' not in str(error.value)


def test_an_unknown_key_that_says_nothing_is_told():
  reader = HFConfig({'a_new_key': None, 'b': 1, 'model_type': 'llama'}, 'config.json')
  reader.integer('b')
  reader.finish()
  assert reader.notes == ['config.json: passed over, unknown and empty: a_new_key']


def test_the_newer_names_of_keys_are_read():
  new = {key: value for key, value in LLAMA.items() if key != 'rope_theta'}
  new |= {'rope_parameters': {'rope_theta': 500000.0, 'rope_type': 'default'}, 'head_dim': 16}
  keys = config_of(new)
  assert (keys['model.rope_base'], keys['model.head_dim']) == (500000.0, 16)


def test_a_model_without_experts_is_dense_in_either_layout():
  keys = config_of(
    DEEPSEEK | {'n_routed_experts': None, 'num_key_value_heads': 2, 'rms_norm_eps': 1e-5}
  )
  assert keys == config_of(LLAMA)


@pytest.mark.parametrize(
  'changes, words',
  [
    ({'moe.router': 'hash'}, "moe.router='hash'"),
    ({'model.head_dim': 10}, 'model.head_dim=10'),
    ({'moe.num_experts': 0, 'moe.experts_per_token': 0}, 'moe.num_experts=0'),
    ({'ops.force_balanced_routing': True}, 'ops.force_balanced_routing=True'),
  ],
)
def test_what_a_layout_cannot_say_is_refused_by_name(changes, words):
  with pytest.raises(UserError, match=words):
    LAYOUTS['deepseek'].to_json(small_config(**changes))
