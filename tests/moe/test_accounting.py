"""moe/accounting.py against every row of the paper's tables,
and against one small model counted by hand.
"""

import pytest

from experiments import base, scaling, validation
from moe.accounting import account
from moe.config import from_config_dict

B, T = 1e9, 1e12

# The formulas' values for the settings of each row, rounded as printed. The comment beside a value
# is what the paper prints, where that differs. Keys are fields of Accounting.
VALIDATION = {
  'dense': {
    'total_params': 0.197 * B,
    'active_params': 0.197 * B,
    'train_flops_per_sequence': 2.88 * T,
  },
  'hash': {
    'total_params': 1.967 * B,
    'active_params': 0.198 * B,
    'train_flops_per_sequence': 2.88 * T,
  },
  'switch': {
    'total_params': 1.967 * B,
    'active_params': 0.198 * B,
    'train_flops_per_sequence': 2.88 * T,
  },
  'gshard': {
    'total_params': 1.967 * B,
    'active_params': 0.316 * B,
    'train_flops_per_sequence': 4.33 * T,
  },
  'gshard_x1_2': {'expert_params': 2.265 * B, 'active_expert_params': 0.283 * B},
  'gshard_x1_5': {
    'expert_params': 2.831 * B,
    'active_expert_params': 0.354 * B,  # 0.35
    'train_flops_per_sequence': 5.78 * T,
  },
  'dense_x4': {'expert_params': 0.472 * B, 'active_expert_params': 0.472 * B},
  'dense_x16': {
    'expert_params': 1.887 * B,
    'active_expert_params': 1.887 * B,
    'train_flops_per_sequence': 24.62 * T,
  },
  'deepseek_moe': {
    'total_params': 1.968 * B,
    'active_params': 0.316 * B,
    'expert_params': 1.89 * B,
    'active_expert_params': 0.236 * B,  # 0.24
    'train_flops_per_sequence': 4.34 * T,
  },
  'deepseek_moe_half': {
    'total_params': 1.968 * B,
    'active_params': 0.198 * B,
    'train_flops_per_sequence': 2.89 * T,
  },
}
SCALING = {
  'deepseek_moe_13b': {
    'non_embedding_params': 13.29 * B,  # 13.3
    'active_non_embedding_params': 2.01 * B,  # 2.05
  },
  'gshard_13b_x1_2': {
    'non_embedding_params': 15.87 * B,  # 15.9
    'active_non_embedding_params': 2.34 * B,  # 2.37
  },
  'gshard_13b_x1_5': {
    'non_embedding_params': 19.73 * B,  # 19.8
    'active_non_embedding_params': 2.82 * B,  # 2.82
  },
  'deepseek_moe_16b': {
    'total_params': 16.376 * B,
    'active_params': 2.829 * B,
    'train_flops_per_sequence': 75.9 * T,  # 74.4
  },
  'deepseek_7b': {'total_params': 6.910 * B, 'train_flops_per_sequence': 184.3 * T},  # 183.5
  'llama2_7b': {'total_params': 6.738 * B, 'train_flops_per_sequence': 188.8 * T},  # 187.9
  'deepseek_moe_145b': {
    'total_params': 144.61 * B,
    'active_params': 22.19 * B,
    'train_flops_per_sequence': 586.1 * T,  # 585.6
  },
  'deepseek_moe_142b_half': {
    'total_params': 142.37 * B,
    'active_params': 13.61 * B,  # 12.2, which does not fit the FLOPs beside it
    'train_flops_per_sequence': 375.3 * T,  # 374.6
  },
  'gshard_137b': {
    'total_params': 136.27 * B,  # 136.5
    'active_params': 21.65 * B,
    'train_flops_per_sequence': 572.8 * T,
  },
  'deepseek_67b': {
    'total_params': 67.42 * B,
    'train_flops_per_sequence': 1793 * T,  # 2057.5, without grouped heads
  },
}


@pytest.mark.parametrize(
  ('file', 'name', 'expected'),
  [
    (file, name, row)
    for file, rows in ((validation, VALIDATION), (scaling, SCALING))
    for name, row in rows.items()
  ],
  ids=lambda value: value if isinstance(value, str) else '',
)
def test_every_row_of_the_tables_within_half_a_percent(file, name, expected):
  numbers = account(from_config_dict(file.get_config(name)))
  for field, value in expected.items():
    assert getattr(numbers, field) == pytest.approx(value, rel=0.005), field


def test_every_variant_of_the_tables_has_a_row():
  assert validation.VARIANTS.keys() == VALIDATION.keys()
  assert scaling.VARIANTS.keys() == SCALING.keys()


def _small(**changes):
  """The counts of 2 layers, the first dense; d 4, 2 heads of 2 with 1 key/value head;
  1 shared and 3 routed experts, 2 of them a token; vocabulary 10; 8 tokens.
  """
  config = base.get_config()
  config.update_from_flattened_dict(
    {
      'model.vocab_size': 10,
      'model.num_layers': 2,
      'model.d_model': 4,
      'model.num_heads': 2,
      'model.num_kv_heads': 1,
      'model.head_dim': 2,
      'model.num_dense_layers': 1,
      'model.d_ff': 7,
      'moe.num_experts': 3,
      'moe.experts_per_token': 2,
      'moe.d_expert': 5,
      'data.seq_len': 8,
    }
    | changes
  )
  return account(from_config_dict(config))


def test_a_small_model_counted_by_hand():
  numbers = _small()
  attention = 2 * (16 + 8 + 8 + 16)  # q, k, v, out of both layers
  norms = 5 * 4
  dense, expert, router, embedding = 3 * 4 * 7, 3 * 4 * 5, 4 * 3, 40
  assert numbers.expert_params == dense + 4 * expert
  assert numbers.active_expert_params == dense + 3 * expert
  assert numbers.non_embedding_params == attention + norms + router + dense + 4 * expert
  assert numbers.total_params == numbers.non_embedding_params + 2 * embedding
  assert numbers.active_params == numbers.total_params - expert
  # `embedding` counts the head, which has the same size; the embedding's look-up has no matmul.
  matmuls = attention + router + dense + 3 * expert + embedding
  assert numbers.train_flops_per_sequence == 6 * matmuls * 8 + 12 * 2 * 64 * 4
  assert numbers.train_flops_per_token * 8 == numbers.train_flops_per_sequence
  assert numbers.forward_flops_per_token * 3 == numbers.train_flops_per_token


def test_wider_experts_count_by_their_width_and_are_used_by_their_mean():
  """One of 3 experts of width 5 is three times as wide. A token goes through 2 of them, counted
  at the mean width, 25/3.
  """
  one = 3 * 4 * 5
  plain, wide = _small(), _small(**{'moe.wide_experts': 1, 'moe.wide_factor': 3})
  assert wide.total_params - plain.total_params == 2 * one
  assert wide.active_params - plain.active_params == 4 * one // 3


def test_a_hash_router_has_no_parameters():
  softmax, hashed = (
    _small(**{'moe.experts_per_token': 1}),
    _small(**{'moe.experts_per_token': 1, 'moe.router': 'hash'}),
  )
  assert softmax.total_params - hashed.total_params == 4 * 3
  assert softmax.forward_flops_per_token - hashed.forward_flops_per_token == 2 * 4 * 3


def test_all_counts_are_integers():
  numbers = account(from_config_dict(scaling.get_config('deepseek_moe_145b')))
  assert all(type(value) is int for value in vars(numbers).values())
