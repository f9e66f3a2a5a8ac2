"""The models beyond 2B: Table 10 (13B), Table 3 (16B beside 7B dense models) and
Table 6 (145B and its siblings).

  python -m launch.train --config=experiments/scaling.py:deepseek_moe_16b --workdir=DIR

Training settings are Table 7's. Where the paper publishes none for a model, a comment says whose
it takes. On a CPU take the same names from `proxy.py`. Expected (13B rows without embeddings;
FLOPs of one 4K sequence):

  variant                 total / active params   FLOPs     result
  deepseek_moe_13b        13.3B / 2.05B           –         –
  gshard_13b_x1_2         15.9B / 2.37B           –         –
  gshard_13b_x1_5         19.8B / 2.82B           –         –
  deepseek_moe_16b        16.4B / 2.8B            74.4T     Pile 0.74 bits per byte
  deepseek_7b             6.9B                    183.5T    Pile 0.75 bits per byte
  llama2_7b               6.7B                    187.9T    –
  deepseek_moe_145b       144.6B / 22.2B          585.6T    Pile loss 1.876
  deepseek_moe_142b_half  142.3B / 12.2B          374.6T    Pile loss 1.888
  gshard_137b             136.5B / 21.6B          572.7T    Pile loss 1.961
  deepseek_67b            67.4B                   2057.5T   Pile loss 1.905

Planned memory, step time and MFU on target machines: experiments/results/plans.md (`make plan`).

Two of the paper's figures disagree with its own settings: 142B-half activates 13.6B (as its FLOPs
say), and 67B costs 1793T with its 8 key/value heads (2067T if all 64 heads had their own).
"""

from ml_collections import ConfigDict

from experiments import variants
from experiments.base import expert_width

_TRAINING_16B = {
  'model.remat': 'full',
  'data.seq_len': 4096,
  'data.batch_size': 4608,
  'train.microbatches': 72,  # one sequence a device on 64
  'mesh.data': 1,
  'mesh.fsdp': -1,
  'train.num_steps': 106_449,  # 2T tokens
  'optimizer.peak_lr': 4.2e-4,
  'moe.expert_balance_weight': 0.001,
}
_TRAINING_145B = _TRAINING_16B | {
  'train.microbatches': 9,  # one sequence a device on 512
  'train.num_steps': 13_000,  # 245B tokens
  'optimizer.peak_lr': 3.0e-4,
  'optimizer.schedule': 'constant',
  'moe.expert_balance_weight': 0.003,
  'moe.device_balance_weight': 0.05,
  'moe.device_groups': 4,  # routed experts lie on 4 devices
}
# The paper publishes none: the 16B's, for 100B tokens as in the 2B study.
_TRAINING_13B = _TRAINING_16B | {'train.num_steps': 5298}

# 100K pieces; the embedding's rows are padded to a round number.
_VOCABULARY = {'model.vocab_size': 102_400, 'data.vocab_size': 100_000}

# Devices that the routed experts are spread over; further devices split the experts' widths.
_EXPERTS_ON_8 = {'mesh.expert': 8}
_EXPERTS_ON_4 = {'mesh.expert': 4}  # the groups of the device-level balance loss


def _shape(num_layers: int, d_model: int, num_heads: int, num_kv_heads: int | None = None) -> dict:
  return {
    'model.num_layers': num_layers,
    'model.d_model': d_model,
    'model.num_heads': num_heads,
    'model.num_kv_heads': num_kv_heads or num_heads,
  }


def _first_layer_dense(d_ff: int) -> dict:
  return {'model.num_dense_layers': 1, 'model.d_ff': d_ff}


# The 13B also takes the 16B's vocabulary.
_BASE_13B = (
  _TRAINING_13B | _EXPERTS_ON_8 | _VOCABULARY | _shape(num_layers=24, d_model=2048, num_heads=16)
)
_BASE_16B = (
  _TRAINING_16B | _EXPERTS_ON_8 | _VOCABULARY | _shape(num_layers=28, d_model=2048, num_heads=16)
)
_BASE_145B = (
  _TRAINING_145B | _EXPERTS_ON_4 | _VOCABULARY | _shape(num_layers=62, d_model=4096, num_heads=32)
)


def _width(d_model: int, size: float) -> int:
  return expert_width(d_model, size, multiple_of=64)


VARIANTS = {
  'deepseek_moe_16b': _BASE_16B
  | variants.experts(2, 64, 6, _width(2048, 0.25))
  | _first_layer_dense(10_944),
  'deepseek_moe_13b': _BASE_13B | variants.experts(1, 63, 7, expert_width(2048, 0.25)),
  'gshard_13b_x1_2': _BASE_13B | variants.experts(0, 16, 2, expert_width(2048, 1.2)),
  'gshard_13b_x1_5': _BASE_13B | variants.experts(0, 16, 2, expert_width(2048, 1.5)),
  # The paper gives no training settings for these two dense models: the 16B's.
  'deepseek_7b': _TRAINING_16B | _VOCABULARY | _shape(30, 4096, 32) | variants.dense(30, 11_008),
  'llama2_7b': _TRAINING_16B
  | {'model.vocab_size': 32_000, 'model.norm_eps': 1e-5}
  | _shape(32, 4096, 32)
  | variants.dense(32, 11_008),
  'deepseek_moe_145b': _BASE_145B
  | variants.experts(4, 128, 12, _width(4096, 0.125))
  | _first_layer_dense(21_888),
  # Table 6 compares these with the 145B and gives them no settings of their own: the 145B's.
  'deepseek_moe_142b_half': _BASE_145B
  | variants.experts(2, 128, 6, _width(4096, 0.125))
  | _first_layer_dense(10_944),
  'gshard_137b': _BASE_145B
  | variants.experts(0, 16, 2, _width(4096, 1))
  | _first_layer_dense(21_888),
  'deepseek_67b': _TRAINING_145B
  | _VOCABULARY
  | _shape(95, 8192, 64, 8)
  | variants.dense(95, 22_016),
}


def get_config(name: str = 'deepseek_moe_16b') -> ConfigDict:
  return variants.build(__file__, VARIANTS, name)
