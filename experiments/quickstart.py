"""A small DeepSeekMoE that learns the builtin corpus on two CPU cores within minutes: what `make quickstart` trains.

  python -m launch.train --config=experiments/quickstart.py --workdir=DIR

1 shared + 31 routed experts of a quarter FFN, 3 routed ones a token: a token activates as many parameters as a dense
FFN has. It reproduces no table of the paper.
"""

from ml_collections import ConfigDict

from experiments import variants
from experiments.base import expert_width

VARIANTS = {
  'deepseek_moe': variants.experts(shared=1, routed=31, active=3, width=expert_width(256, 0.25))
  | {
    'model.vocab_size': 4096,
    'model.num_layers': 4,
    'model.d_model': 256,
    'model.num_heads': 4,
    'model.num_kv_heads': 4,
    'model.head_dim': 64,
    'model.init_std': 0.02,  # 0.006 suits d 1280 and more
    'model.dtype': 'float32',
    'data.tokenizer_sample_mb': 4.0,
    'data.seq_len': 256,
    'data.batch_size': 8,
    'optimizer.peak_lr': 3e-3,
    'optimizer.warmup_steps': 20,
    'train.num_steps': 240,
    'train.heatmap_every': 60,
    'evaluation.every_steps': 120,
    'evaluation.max_batches': 4,
    'checkpoint.every_steps': 60,
  }
}


def get_config(name: str = 'deepseek_moe') -> ConfigDict:
  return variants.build('quickstart', VARIANTS, name)
