"""A run of seconds for the tests of whole programs: --config=tests/launch/runs/config.py."""

from experiments import base


def get_config():
  config = base.get_config()
  config.update_from_flattened_dict(
    {
      'name': 'tiny',
      'model.vocab_size': 320,
      'model.num_layers': 2,
      'model.d_model': 32,
      'model.num_heads': 2,
      'model.num_kv_heads': 2,
      'model.head_dim': 16,
      'model.init_std': 0.05,
      'model.dtype': 'float32',
      'moe.num_experts': 4,
      'moe.experts_per_token': 2,
      'moe.d_expert': 16,
      'data.seq_len': 32,
      'data.batch_size': 4,
      'optimizer.peak_lr': 0.01,
      'optimizer.warmup_steps': 10,
      'train.num_steps': 40,
      'train.log_every': 1,
      'train.heatmap_every': 20,
      'evaluation.every_steps': 20,
      'evaluation.batch_size': 4,
      'evaluation.max_batches': 1000,
      'checkpoint.every_steps': 10,
      # Compiles fastest; test_resume.py has a run with what a user gets.
      'ops.implementation': 'reference',
    }
  )
  return config
