"""The routed FFN in plain XLA: on CPU tiles side by side,
elsewhere grouped matmuls (`lax.ragged_dot`).
"""

import jax
import jax.numpy as jnp

from moe.ops.dispatch_plan import DispatchPlan
from moe.ops.implementation import platform
from moe.ops.routed_ffn import grouped, tiled
from moe.ops.routed_ffn.types import ExpertWeights


def routed_ffn(
  tokens_TD: jax.Array,
  gates_TK: jax.Array,
  plan: DispatchPlan,
  weights: ExpertWeights,
  dtype: jnp.dtype,
) -> jax.Array:
  arrangement = tiled if platform() == 'cpu' else grouped
  return arrangement.routed_ffn(tokens_TD, gates_TK, plan, weights, dtype)
