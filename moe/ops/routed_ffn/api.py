"""routed_ffn: Σ_k gate · FFN_expert(token) (the routed sum of Eq. 9), exact and dropless."""

import jax
import jax.numpy as jnp

from moe.ops.dispatch_plan import DispatchPlan
from moe.ops.implementation import run
from moe.ops.routed_ffn import reference, xla
from moe.ops.routed_ffn.types import ExpertWeights


def _pallas_tpu(*arguments):
  from moe.ops.routed_ffn import pallas_tpu

  return pallas_tpu.routed_ffn(*arguments)


def _pallas_gpu(*arguments):
  from moe.ops.routed_ffn import pallas_gpu

  return pallas_gpu.routed_ffn(*arguments)


# Pallas is imported where its kernels run.
IMPLEMENTATIONS = {
  'reference': reference.routed_ffn,
  'xla': xla.routed_ffn,
  'pallas_tpu': _pallas_tpu,
  'pallas_gpu': _pallas_gpu,
}


def routed_ffn(
  tokens_TD: jax.Array,
  gates_TK: jax.Array,
  plan: DispatchPlan,
  weights: ExpertWeights,
  *,
  dtype: jnp.dtype,
  implementation: str = 'auto',
) -> jax.Array:
  """tokens_TD: each token's experts, weighted by its gates and summed.

  Args:
    tokens_TD: input, any float type.
    gates_TK: float32 weights of the assignments in `plan.experts_TK`.
    plan: from `make_plan` of this layer's routing.
    weights: of the E experts, usually float32; cast to `dtype` inside,
      their gradients come in their own type.
    dtype: of the matrix products' operands; sums are float32.
    implementation: see `moe.ops.implementation`.

  Returns:
    tokens_TD in `dtype`. Differentiable in tokens, gates and weights.
  """
  return run(
    'routed_ffn', IMPLEMENTATIONS, implementation, tokens_TD, gates_TK, plan, weights, dtype
  )
