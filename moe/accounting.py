"""Counts the parameters, activated parameters and FLOPs of a Config. Starts no device.

Layers and routers count their own parameters. Tables 1–3, 6, 9 and 10 of the paper follow from
these counts (see tests/moe/test_accounting.py). Every matrix counts in full, at the widths in the
config, rounding included.
"""

import dataclasses
import math
from collections.abc import Mapping

from moe.config import Config
from moe.errors import UserError


@dataclasses.dataclass(frozen=True)
class Accounting:
  """Counts of parameters, and floating-point operations (a multiply-add is 2). All exact integers.

  'Active' is what one token uses: the routed experts it is sent to and everything else. 'Experts'
  are all FFNs, like the paper's 'expert params' (Table 9): routed, shared and dense ones, without
  routers. 'Non-embedding' leaves out both the embedding and the output head (Table 10).
  """

  total_params: int
  active_params: int
  expert_params: int
  active_expert_params: int
  non_embedding_params: int
  active_non_embedding_params: int
  seq_len: int  # sequence length that the FLOPs below assume; the cost of attention grows with it
  train_flops_per_sequence: int  # forward and backward, without recomputation
  train_flops_per_token: int
  forward_flops_per_token: int


def account(config: Config) -> Accounting:
  """Counts for `config`.

  Training FLOPs of one sequence of T tokens, forward + backward,
  follow the formula that reproduces the paper's tables:

    6 · (matmul parameters a token activates, with the output head, without the embedding) · T
    + 12 · layers · T² · (heads · head_dim)

  6 = 2 for a multiply-add × 3 for the forward and two backward products. The second term
  is the attention scores and the weighted sum of values, counted over all T² pairs
  although the causal mask leaves only half of them.
  """
  model, seq_len = config.model, config.data.seq_len
  embedding = model.vocab_size * model.d_model  # the output head is as large
  counted = count_params(config)
  experts, active_experts = counted['experts'], counted['experts'] - counted['idle experts']
  matmuls_beside_experts = counted['attention'] + counted['routers']
  norms = counted['norms']
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


def count_params(config: Config) -> dict[str, int]:
  """The number of parameters by component, as the layers count them themselves;
  'experts' includes the 'idle experts'.
  """
  # Imported here, not with this module: layers load jax. No device is started.
  from moe.layers.attention import Attention
  from moe.layers.mlp import MLP
  from moe.layers.moe_layer import MoELayer
  from moe.layers.norm import RMSNorm

  model, norm = config.model, RMSNorm.num_params(config)
  moe_layers = model.num_moe_layers
  of_layer = MoELayer.num_params(config)
  dense = model.num_dense_layers * MLP.num_params(config, model.d_ff)
  return {
    'embedding': model.vocab_size * model.d_model,
    'head': model.vocab_size * model.d_model,
    'attention': model.num_layers * Attention.num_params(config),
    'norms': (2 * model.num_layers + 1) * norm,
    'routers': moe_layers * of_layer.router,
    'experts': dense + moe_layers * of_layer.experts,
    'idle experts': moe_layers * of_layer.idle_experts,
  }


def check(config: Config, params: Mapping) -> None:
  """Raises UserError unless each component of a tree of parameters, or of their shapes,
  has the size that is counted here.
  """
  counted = count_params(config)
  sizes = dict.fromkeys(counted, 0)
  for path, leaf in _leaves(params):
    sizes[_owner(path)] += math.prod(leaf.shape)
  for name, size in sizes.items():
    if name != 'idle experts' and size != counted[name]:
      raise UserError(
        f'{name} of {config.name} has {size:,} parameters, and its num_params counts '
        f'{counted[name]:,}: fix num_params in moe/layers or moe/routers'
      )


def _leaves(tree, path=()):
  if not isinstance(tree, Mapping):
    yield path, tree
    return
  for name, branch in tree.items():
    yield from _leaves(branch, (*path, name))


def _owner(path):
  """The entry of `count_params` that a parameter belongs to."""
  owners = {
    'attention': 'attention',
    'router': 'routers',
    'shared_gate': 'routers',
    'experts': 'experts',
    'shared': 'experts',
    'mlp': 'experts',
    'embedding': 'embedding',
    'head': 'head',
  }
  return next((owners[name] for name in path if name in owners), 'norms')
