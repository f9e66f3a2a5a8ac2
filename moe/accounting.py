"""Parameters, activated parameters and FLOPs of a Config, in plain Python: no jax, no device.

The tables of the paper follow from these counts: Tables 1–3, 6, 9 and 10 (see
tests/moe/test_accounting.py). A matrix is counted whole, with its widths as the config has them, rounding included.
"""

import dataclasses

from moe.config import Config, ModelConfig, MoEConfig


@dataclasses.dataclass(frozen=True)
class Accounting:
  """Counts of parameters, and floating-point operations (a multiply-add is 2). All exact integers.

  'Active' is what one token uses: the routed experts it is sent to and everything else. 'Experts' are all FFNs, as the
  paper's 'expert params' (Table 9): routed, shared and dense ones, without routers. 'Non-embedding' leaves out both the
  embedding and the output head (Table 10).
  """

  total_params: int
  active_params: int
  expert_params: int
  active_expert_params: int
  non_embedding_params: int
  active_non_embedding_params: int
  seq_len: int  # tokens of the sequence that the FLOPs below are for; attention costs grow with it
  train_flops_per_sequence: int  # forward and backward, without recomputation
  train_flops_per_token: int
  forward_flops_per_token: int


def account(config: Config) -> Accounting:
  """Counts for `config`.

  Training FLOPs of one sequence of T tokens, forward + backward, follow the formula that reproduces the paper's tables:

    6 · (matmul parameters a token activates, output head in, embedding look-up out) · T
    + 12 · layers · T² · (heads · head_dim)

  6 = 2 for a multiply-add × 3 for the forward and two backward products. The second term is the attention scores and
  the weighted sum of values, counted over all T² pairs although the mask leaves half.
  """
  model, moe, seq_len = config.model, config.moe, config.data.seq_len
  embedding = model.vocab_size * model.d_model  # the output head is as large
  experts, active_experts = _experts(model, moe)
  matmuls_beside_experts = model.num_layers * _attention(model) + _routers(model, moe)
  norms = (2 * model.num_layers + 1) * model.d_model
  non_embedding = matmuls_beside_experts + norms + experts
  active_non_embedding = matmuls_beside_experts + norms + active_experts

  active_matmuls = matmuls_beside_experts + active_experts + embedding
  attended = model.num_layers * seq_len * model.num_heads * model.head_dim
  forward = 2 * active_matmuls + 4 * attended
  return Accounting(
    total_params=non_embedding + 2 * embedding,
    active_params=active_non_embedding + 2 * embedding,
    expert_params=experts,
    active_expert_params=active_experts,
    non_embedding_params=non_embedding,
    active_non_embedding_params=active_non_embedding,
    seq_len=seq_len,
    train_flops_per_sequence=3 * forward * seq_len,
    train_flops_per_token=3 * forward,
    forward_flops_per_token=forward,
  )


def _attention(model: ModelConfig) -> int:
  """Query, key, value and output matrices of one layer."""
  return 2 * model.d_model * model.head_dim * (model.num_heads + model.num_kv_heads)


def _experts(model: ModelConfig, moe: MoEConfig) -> tuple[int, int]:
  """All FFNs of all layers, and what a token uses of them. Each is SwiGLU: three matrices."""
  moe_layers = model.num_layers - model.num_dense_layers
  dense = model.num_dense_layers * 3 * model.d_model * model.d_ff
  one = moe_layers * 3 * model.d_model * moe.d_expert
  return (
    dense + one * (moe.num_shared_experts + moe.num_experts),
    dense + one * (moe.num_shared_experts + moe.experts_per_token),
  )


def _routers(model: ModelConfig, moe: MoEConfig) -> int:
  """The centroids e_i of Eq. 8; a hash router has none."""
  moe_layers = model.num_layers - model.num_dense_layers
  return moe_layers * model.d_model * moe.num_experts if moe.router == 'softmax' else 0
