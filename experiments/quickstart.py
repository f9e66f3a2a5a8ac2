"""A small DeepSeekMoE that learns the builtin corpus on two CPU cores within minutes. `make
quickstart` trains it.

  python -m launch.quickstart --config=experiments/quickstart.py --workdir=DIR

It has 1 shared and 15 routed experts, each a quarter of an FFN. A token activates the shared one
and 3 routed ones, as many parameters as a dense FFN has. It reproduces no table of the paper. The
model is shallow, its vocabulary large and its batches small because a few minutes allow only 0.8M
tokens; each of these choices was the best of a few tried for the same time.
"""

from ml_collections import ConfigDict

from experiments import variants
from experiments.base import expert_width

VARIANTS = {
  'deepseek_moe': variants.experts(shared=1, routed=15, active=3, width=expert_width(128, 0.25))
  | {
    'model.vocab_size': 8192,
    'model.num_layers': 3,
    'model.d_model': 128,
    'model.num_heads': 2,
    'model.num_kv_heads': 2,
    'model.head_dim': 64,
    'model.init_std': 0.02,  # 0.006 suits d 1280 and more
    'model.dtype': 'float32',
    'data.tokenizer_sample_mb': 4.0,
    'data.seq_len': 256,
    'data.batch_size': 4,
    'optimizer.peak_lr': 5e-3,
    'optimizer.warmup_steps': 30,
    'train.num_steps': 800,
    'train.log_every': 20,
    'train.heatmap_every': 200,
    'train.loss_chunk': 256,  # on CPU a chunk's logits should stay near the cache
    'evaluation.every_steps': 400,
    'evaluation.max_batches': 4,
    'checkpoint.every_steps': 400,
  }
}


def get_config(name: str = 'deepseek_moe') -> ConfigDict:
  return variants.build(__file__, VARIANTS, name)
