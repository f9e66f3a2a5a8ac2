"""Every variant of `validation.py`, `scaling.py`, `ablations.py` and `sft.py`, by the same name,
at a size a CPU trains.

  python -m launch.train --config=experiments/proxy.py:deepseek_moe --workdir=DIR

Kept from the original: the numbers of shared, routed and activated experts; the size of an expert
and of a dense FFN relative to d_model; which layers are dense; router and balance losses with their
device groups; the ratio of key/value heads to heads, where 4 heads allow it. Changed: 6 layers,
d 256, 4 heads of 64, vocabulary 4096, 256 tokens a sequence, 16 sequences a step, float32, and a
schedule of 300 steps (1.2M tokens). It reproduces no table of the paper: comparisons between
variants carry over, losses do not.

A variant of `sft.py` starts from a run of its base model's proxy (`train.init_from`) and keeps a
constant learning rate.
"""

from ml_collections import ConfigDict

from experiments import ablations, scaling, sft, validation, variants

_FILES = (validation, scaling, ablations, sft)
VARIANTS = {name: file for file in _FILES for name in file.VARIANTS}
if len(VARIANTS) < sum(len(file.VARIANTS) for file in _FILES):
  raise ValueError('two config files share a variant name: proxy.py could not tell them apart')

_LAYERS, _D, _HEAD_DIM = 6, 256, 64

_SCALE = {
  'model.vocab_size': 4096,
  # 0.006 suits d 1280 to 4096; at d 256 it would leave every layer's output,
  # and so the gradients, tiny for 300 steps.
  'model.init_std': 0.02,
  'model.dtype': 'float32',
  'model.remat': 'none',
  'data.vocab_size': 0,
  'data.tokenizer_sample_mb': 4.0,
  'data.seq_len': 256,
  'data.batch_size': 16,
  'optimizer.peak_lr': 2e-3,
  # Even where the original's rate is constant: short runs are compared at their end, after decay.
  'optimizer.schedule': 'step_decay',
  'optimizer.warmup_steps': 30,
  'mesh.data': -1,  # so small a model fits on every device: one copy on each
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

# A quarter of the base model's rate: the paper's share, a fortieth, changes little in 300 steps.
_SFT_SCALE = {
  'optimizer.schedule': 'constant',
  'optimizer.warmup_steps': 0,
  'optimizer.peak_lr': 5e-4,
}


def original(name: str) -> ConfigDict:
  """The full-size config of a variant."""
  variants.check(__file__, VARIANTS, name)
  return VARIANTS[name].get_config(name)


def get_config(name: str = 'deepseek_moe') -> ConfigDict:
  config = original(name)
  resized = variants.resized(config, _LAYERS, _D, _HEAD_DIM)
  scale = _SCALE | (_SFT_SCALE if name in sft.VARIANTS else {})
  config.update_from_flattened_dict({'name': f'proxy:{name}'} | resized | scale)
  return config
