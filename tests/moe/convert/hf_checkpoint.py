"""Tiny checkpoints of every kind that conversion accepts, and the stacked layout."""

import numpy as np

from experiments.notebooks.released import DEEPSEEK, is_dense

LLAMA = {
  key: value
  for key, value in DEEPSEEK.items()
  if key
  in (
    *('vocab_size', 'hidden_size', 'intermediate_size', 'num_hidden_layers', 'hidden_act'),
    *('num_attention_heads', 'max_position_embeddings', 'initializer_range', 'rms_norm_eps'),
    *('rope_scaling', 'tie_word_embeddings', 'bos_token_id', 'eos_token_id', 'torch_dtype'),
  )
} | {
  'architectures': ['LlamaForCausalLM'],
  'model_type': 'llama',
  'num_key_value_heads': 2,
  'pretraining_tp': 1,
  'rms_norm_eps': 1e-5,
}
CASES = {
  'deepseek': DEEPSEEK,
  'deepseek, no dense layer': DEEPSEEK | {'first_k_dense_replace': 0},
  'deepseek, grouped heads': DEEPSEEK | {'num_key_value_heads': 2},
  'deepseek, no shared experts': DEEPSEEK | {'n_shared_experts': None},
  'deepseek, zero shared experts': DEEPSEEK | {'n_shared_experts': 0, 'first_k_dense_replace': 2},
  'llama': LLAMA,
}


def stacked(hf: dict, each: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Returns the same weights with each layer's routed experts stacked: gate_up_proj [E, 2F, D],
  down_proj [E, D, F].
  """
  found = {name: w for name, w in each.items() if '.mlp.experts.' not in name}
  for layer in range(hf['num_hidden_layers']):
    if is_dense(hf, layer):
      continue
    prefix = f'model.layers.{layer}.mlp.experts'
    weight = lambda expert, name, prefix=prefix: each[f'{prefix}.{expert}.{name}_proj.weight']
    experts = range(hf['n_routed_experts'])
    both = [np.concatenate([weight(e, 'gate'), weight(e, 'up')]) for e in experts]
    found[f'{prefix}.gate_up_proj'] = np.stack(both)
    found[f'{prefix}.down_proj'] = np.stack([weight(e, 'down') for e in experts])
  return found
