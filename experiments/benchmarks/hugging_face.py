"""A checkpoint that launch.convert has exported, as the model of the harness's own backend.

The model is transformers' LLaMA, with its DeepSeek-V2 layer for the experts, whose mathematics is
the same: the code that came with the released 16B is in no package.
"""

import json
from pathlib import Path

from moe.errors import UserError


def is_installed() -> bool:
  try:
    import torch
    import transformers
  except ImportError:
    return False
  return bool(torch and transformers)


def backend(folder: Path, max_length: int, batch_size: int, add_bos: bool = True):
  """The harness's HFLM over a folder of config.json, safetensors and tokenizer.json, float32.

  add_bos: contexts begin with BOS. Rolling requests would get it twice.
  UserError without torch and transformers.
  """
  if not is_installed():
    raise UserError('this needs torch and transformers: pip install torch transformers')
  import transformers
  from lm_eval.models.huggingface import HFLM

  config = json.loads((folder / 'config.json').read_text())
  tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_file=str(folder / 'tokenizer.json'),
    **{key: _spelt(folder, config[f'{key}_id']) for key in ('bos_token', 'eos_token')},
  )
  return HFLM(
    pretrained=_model(folder, config),
    tokenizer=_with_bos(tokenizer),
    max_length=max_length,
    batch_size=batch_size,
    add_bos_token=add_bos,
  )


def _model(folder, config):
  import torch

  model = untrained(config)
  model.load_state_dict(_tensors(folder), strict=True)
  return model.to(torch.float32).eval()


def untrained(config: dict, experts: str = 'grouped_mm'):
  """The model for a config.json that `launch.convert` writes, without its weights.

  experts: how its experts are computed, one of transformers' `experts_implementation`.
  """
  import transformers
  from transformers.models.deepseek_v2 import modeling_deepseek_v2 as v2

  kept = (
    *('vocab_size', 'hidden_size', 'intermediate_size', 'num_hidden_layers', 'rms_norm_eps'),
    *('num_attention_heads', 'num_key_value_heads', 'max_position_embeddings'),
  )
  rope = {'rope_type': 'default', 'rope_theta': config.get('rope_theta', 10_000.0)}
  model = transformers.LlamaForCausalLM(
    transformers.LlamaConfig(
      **{key: config[key] for key in kept}, rope_parameters=rope, tie_word_embeddings=False
    )
  )
  if config['model_type'] == 'deepseek':
    layer = v2.DeepseekV2Config(
      hidden_size=config['hidden_size'],
      moe_intermediate_size=config['moe_intermediate_size'],
      n_routed_experts=config['n_routed_experts'],
      num_experts_per_tok=config['num_experts_per_tok'],
      n_shared_experts=config['n_shared_experts'],
      topk_method='greedy',
      routed_scaling_factor=1.0,
      experts_implementation=experts,
    )
    for block in model.model.layers[config['first_k_dense_replace'] :]:
      block.mlp = v2.DeepseekV2Moe(layer)
  return model


def _tensors(folder):
  """All tensors of the folder by name, with each layer's experts stacked."""
  import torch
  from safetensors.torch import load_file

  found = {}
  for path in sorted(folder.glob('*.safetensors')):
    found |= load_file(path)
  experts = {}
  for name in [name for name in found if '.mlp.experts.' in name]:
    prefix, _, rest = name.partition('.mlp.experts.')
    number, kind, _ = rest.split('.')
    experts.setdefault(prefix, {})[int(number), kind] = found.pop(name)
  for prefix, each in experts.items():
    numbers = range(len(each) // 3)
    both = [torch.cat([each[i, 'gate_proj'], each[i, 'up_proj']]) for i in numbers]
    found[f'{prefix}.mlp.experts.gate_up_proj'] = torch.stack(both)
    found[f'{prefix}.mlp.experts.down_proj'] = torch.stack([each[i, 'down_proj'] for i in numbers])
  return found


def _spelt(folder, number):
  """The text of the added token with this id in tokenizer.json."""
  pieces = json.loads((folder / 'tokenizer.json').read_text())['added_tokens']
  return next(each['content'] for each in pieces if each['id'] == number)


def _with_bos(tokenizer):
  """The tokenizer, which now adds BOS when asked for special tokens, as the 16B's does."""
  from tokenizers.processors import TemplateProcessing

  bos = tokenizer.bos_token
  tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
    single=f'{bos} $A', special_tokens=[(bos, tokenizer.bos_token_id)]
  )
  return tokenizer
