"""Checkpoints in the layouts that DeepSeekMoE 16B and LLaMA are released in, and an independent
forward pass over them: NumPy, float64, tensors by name.

Written from the published configuration and layout, not from moe/, so that conversion can be
tested against it.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

DEEPSEEK = {
  'architectures': ['DeepseekForCausalLM'],
  'model_type': 'deepseek',
  'vocab_size': 96,
  'hidden_size': 32,
  'intermediate_size': 80,
  'moe_intermediate_size': 24,
  'num_hidden_layers': 3,
  'num_attention_heads': 4,
  'num_key_value_heads': 4,
  'n_routed_experts': 8,
  'n_shared_experts': 2,
  'num_experts_per_tok': 3,
  'moe_layer_freq': 1,
  'first_k_dense_replace': 1,
  'norm_topk_prob': False,
  'scoring_func': 'softmax',
  'aux_loss_alpha': 0.001,
  'seq_aux': True,
  'hidden_act': 'silu',
  'max_position_embeddings': 64,
  'initializer_range': 0.02,
  'rms_norm_eps': 1e-6,
  'rope_theta': 10000.0,
  'rope_scaling': None,
  'attention_bias': False,
  'attention_dropout': 0.0,
  'tie_word_embeddings': False,
  'bos_token_id': 90,
  'eos_token_id': 91,
  'torch_dtype': 'float32',
  'use_cache': True,
}


class Opened(Mapping):
  """The tensors of a folder's *.safetensors by name, each read when it is asked for.
  KeyError if two files have a tensor of the same name.
  """

  def __init__(self, folder: Path):
    self._files = {}
    for path in sorted(folder.glob('*.safetensors')):
      file = safe_open(path, 'numpy')
      names = set(file.keys())
      if twice := names & self._files.keys():
        raise KeyError(f'{min(twice)} is in several files of {folder}')
      self._files |= dict.fromkeys(names, file)

  def __getitem__(self, name: str) -> np.ndarray:
    return self._files[name].get_tensor(name)

  def __iter__(self) -> Iterator[str]:
    return iter(self._files)

  def __len__(self) -> int:
    return len(self._files)


def shapes(hf: dict) -> dict[str, tuple[int, ...]]:
  """Every tensor of a checkpoint with this config.json, by name."""
  d, head = hf['hidden_size'], hf['hidden_size'] // hf['num_attention_heads']
  kv = hf['num_key_value_heads'] * head
  found = {'model.embed_tokens.weight': (hf['vocab_size'], d)}

  def ffn(prefix, width):
    for name, shape in (('gate', (width, d)), ('up', (width, d)), ('down', (d, width))):
      found[f'{prefix}.{name}_proj.weight'] = shape

  for layer in range(hf['num_hidden_layers']):
    prefix = f'model.layers.{layer}'
    found[f'{prefix}.input_layernorm.weight'] = (d,)
    found[f'{prefix}.post_attention_layernorm.weight'] = (d,)
    for name, rows in (('q', d), ('k', kv), ('v', kv), ('o', d)):
      found[f'{prefix}.self_attn.{name}_proj.weight'] = (rows, d)
    if is_dense(hf, layer):
      ffn(f'{prefix}.mlp', hf['intermediate_size'])
      continue
    found[f'{prefix}.mlp.gate.weight'] = (hf['n_routed_experts'], d)
    for expert in range(hf['n_routed_experts']):
      ffn(f'{prefix}.mlp.experts.{expert}', hf['moe_intermediate_size'])
    if hf['n_shared_experts']:
      width = hf['n_shared_experts'] * hf['moe_intermediate_size']
      ffn(f'{prefix}.mlp.shared_experts', width)
  return found | {'model.norm.weight': (d,), 'lm_head.weight': (hf['vocab_size'], d)}


def is_dense(hf: dict, layer: int) -> bool:
  return hf.get('n_routed_experts') is None or layer < hf['first_k_dense_replace']


def tensors(hf: dict, seed: int = 0, dtype=np.float32, std: float = 0.2) -> dict[str, np.ndarray]:
  """Random weights, by default large enough that routing and attention are far from uniform."""
  generator = np.random.default_rng(seed)
  draw = lambda shape: generator.normal(len(shape) == 1, std, shape).astype(dtype)
  return {name: draw(shape) for name, shape in shapes(hf).items()}


def write(folder: Path, hf: dict, weights: Mapping[str, np.ndarray], shards: int = 2) -> Path:
  """Writes a checkpoint with the `safetensors` package and returns its folder. A single shard gets
  no index. At most one shard's tensors are asked for at a time.
  """
  folder.mkdir()
  (folder / 'config.json').write_text(json.dumps(hf))
  if shards == 1:
    save_file(dict(weights), folder / 'model.safetensors')
    return folder
  weight_map, total = {}, 0
  for shard in range(shards):
    file = f'model-{shard + 1:05}-of-{shards:05}.safetensors'
    part = {name: weights[name] for name in list(weights)[shard::shards]}
    save_file(part, folder / file, metadata={'format': 'pt'})
    weight_map |= dict.fromkeys(part, file)
    total += sum(w.nbytes for w in part.values())
  index = {'metadata': {'total_size': total}, 'weight_map': weight_map}
  (folder / 'model.safetensors.index.json').write_text(json.dumps(index))
  return folder


def logits(hf: dict, weights: Mapping[str, np.ndarray], tokens_L: np.ndarray) -> np.ndarray:
  """logits_LV of one sequence, float64."""
  w = lambda name: weights[f'{name}.weight'].astype(np.float64)
  x_LD = w('model.embed_tokens')[tokens_L]
  for layer in range(hf['num_hidden_layers']):
    prefix = f'model.layers.{layer}'
    norm = lambda x, name, prefix=prefix: _norm(hf, x, w(f'{prefix}.{name}'))
    x_LD = x_LD + _attention(hf, norm(x_LD, 'input_layernorm'), w, f'{prefix}.self_attn')
    u_LD = norm(x_LD, 'post_attention_layernorm')
    ffn = _ffn if is_dense(hf, layer) else _moe
    x_LD = x_LD + ffn(hf, u_LD, w, f'{prefix}.mlp')
  return _norm(hf, x_LD, w('model.norm')) @ w('lm_head').T


def _norm(hf, x_LD, scale_D):
  return x_LD / np.sqrt((x_LD**2).mean(-1, keepdims=True) + hf['rms_norm_eps']) * scale_D


def _attention(hf, x_LD, w, prefix):
  length, heads, kv = len(x_LD), hf['num_attention_heads'], hf['num_key_value_heads']
  c = hf['hidden_size'] // heads
  project = lambda name, n: (x_LD @ w(f'{prefix}.{name}_proj').T).reshape(length, n, c)
  frequencies = hf.get('rope_theta', 10000.0) ** (-np.arange(0, c, 2) / c)
  angles_L1C = (np.arange(length)[:, None] * np.tile(frequencies, 2))[:, None]
  half = lambda x: np.concatenate([-x[..., c // 2 :], x[..., : c // 2]], axis=-1)
  turn = lambda x: x * np.cos(angles_L1C) + half(x) * np.sin(angles_L1C)
  q, k, v = turn(project('q', heads)), turn(project('k', kv)), project('v', kv)
  out = np.zeros((length, heads, c))
  for h in range(heads):
    g = h // (heads // kv)
    scores = q[:, h] @ k[:, g].T / np.sqrt(c)
    scores[np.triu_indices(length, 1)] = -np.inf
    p = np.exp(scores - scores.max(-1, keepdims=True))
    out[:, h] = p / p.sum(-1, keepdims=True) @ v[:, g]
  return out.reshape(length, heads * c) @ w(f'{prefix}.o_proj').T


def _ffn(hf, u, w, prefix):
  gate = u @ w(f'{prefix}.gate_proj').T
  return (gate / (1 + np.exp(-gate)) * (u @ w(f'{prefix}.up_proj').T)) @ w(f'{prefix}.down_proj').T


def _moe(hf, u_LD, w, prefix):
  scores = u_LD @ w(f'{prefix}.gate').T
  p_LE = np.exp(scores - scores.max(-1, keepdims=True))
  p_LE /= p_LE.sum(-1, keepdims=True)
  y_LD = _ffn(hf, u_LD, w, f'{prefix}.shared_experts') if hf['n_shared_experts'] else 0 * u_LD
  for row, (u_D, p_E) in enumerate(zip(u_LD, p_LE, strict=True)):
    for expert in np.argsort(-p_E)[: hf['num_experts_per_tok']]:
      y_LD[row] += p_E[expert] * _ffn(hf, u_D, w, f'{prefix}.experts.{expert}')
  return y_LD
