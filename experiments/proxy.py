"""Every variant of `validation.py`, `scaling.py` and `ablations.py`, by the same name, at a size a CPU trains.

  python -m launch.train --config=experiments/proxy.py:deepseek_moe --workdir=DIR

Kept from the original: how many experts there are, shared, routed and a token; the size of an expert and of a dense FFN
relative to d_model; which layers are dense; router and balance losses with their device groups; the key/value heads'
share where it divides the heads. Changed: 6 layers, d 256, 4 heads of 64, vocabulary 4096, 256 tokens a sequence,
16 sequences a step, float32, and a schedule of 300 steps (1.2M tokens). It reproduces no table of the paper: the
comparisons between variants are what carries over, not the losses.
"""

from ml_collections import ConfigDict

from experiments import ablations, scaling, validation, variants
from experiments.base import expert_width

_FILES = (validation, scaling, ablations)
VARIANTS = {name: file for file in _FILES for name in file.VARIANTS}
if len(VARIANTS) < sum(len(file.VARIANTS) for file in _FILES):
  raise ValueError('two config files share a variant name: proxy.py could not tell them apart')

_LAYERS, _D, _HEADS = 6, 256, 4

_SCALE = {
  'model.vocab_size': 4096,
  'model.num_layers': _LAYERS,
  'model.d_model': _D,
  'model.num_heads': _HEADS,
  'model.head_dim': 64,
  # 0.006 suits d 1280 to 4096; at d 256 it would leave every layer's output, and so the gradients, tiny for 300 steps.
  'model.init_std': 0.02,
  'model.dtype': 'float32',
  'model.remat': 'none',
  'data.vocab_size': 0,
  'data.tokenizer_sample_mb': 4.0,
  'data.seq_len': 256,
  'data.batch_size': 16,
  'optimizer.peak_lr': 2e-3,
  'optimizer.schedule': 'step_decay',  # also where the original is constant: short runs are compared at their end
  'optimizer.warmup_steps': 30,
  'mesh.data': -1,  # every device one more copy of so small a model
  'mesh.fsdp': 1,
  'mesh.expert': 1,
  'mesh.transport': 'auto',
  'train.microbatches': 1,
  'train.num_steps': 300,
  'train.heatmap_every': 100,
  'train.loss_chunk': 512,  # on CPU a chunk's logits should stay near the cache
  'evaluation.every_steps': 100,
  'evaluation.max_batches': 8,
  'checkpoint.every_steps': 100,
}


def _scaled_width(width: int, d_model: int) -> int:
  """The width, relative to d_model, of an expert or FFN of the original; widths of 0 stay 0."""
  return expert_width(_D, width / (8 * d_model / 3)) if width else 0


def get_config(name: str = 'deepseek_moe') -> ConfigDict:
  variants.check('proxy', VARIANTS, name)
  config = VARIANTS[name].get_config(name)
  model = config.model.copy_and_resolve_references()  # the original's
  config.update_from_flattened_dict(_SCALE)
  config.name = f'proxy:{name}'
  config.model.num_kv_heads = max(1, _HEADS * model.num_kv_heads // model.num_heads)
  config.model.num_dense_layers = _LAYERS if model.num_dense_layers == model.num_layers else model.num_dense_layers
  config.model.d_ff = _scaled_width(model.d_ff, model.d_model)
  config.moe.d_expert = _scaled_width(config.moe.d_expert, model.d_model)
  return config
