"""routed_ffn: Σ_k gate · FFN_expert(token) (the routed sum of Eq. 9), exact and dropless."""

import jax
import jax.numpy as jnp

from moe.ops.dispatch_plan import DispatchPlan
from moe.ops.implementation import run
from moe.ops.routed_ffn import reference, xla
from moe.ops.routed_ffn.types import ExpertWeights, part_of


def _pallas_tpu(*arguments):
  from moe.ops.routed_ffn import pallas_tpu

  return pallas_tpu.routed_ffn(*arguments)


def _pallas_gpu(*arguments):
  from moe.ops.routed_ffn import pallas_gpu

  return pallas_gpu.routed_ffn(*arguments)


def _of_stack_tpu(*arguments):
  from moe.ops.routed_ffn import pallas_tpu

  return pallas_tpu.of_stack(*arguments)


def _of_stack_gpu(*arguments):
  from moe.ops.routed_ffn import pallas_gpu

  return pallas_gpu.of_stack(*arguments)


def _of_part(implementation):
  def of_stack(tokens_TD, gates_TK, plan, weights, first, dtype):
    part = part_of(weights, first, plan.group_sizes_E.shape[0])
    return implementation(tokens_TD, gates_TK, plan, part, dtype)

  return of_stack


# Pallas is imported where its kernels run.
IMPLEMENTATIONS = {
  'reference': reference.routed_ffn,
  'xla': xla.routed_ffn,
  'pallas_tpu': _pallas_tpu,
  'pallas_gpu': _pallas_gpu,
}
_OF_STACK = {
  'reference': _of_part(reference.routed_ffn),
  'xla': _of_part(xla.routed_ffn),
  'pallas_tpu': _of_stack_tpu,
  'pallas_gpu': _of_stack_gpu,
}


def routed_ffn(
  tokens_TD: jax.Array,
  gates_TK: jax.Array,
  plan: DispatchPlan,
  weights: ExpertWeights,
  *,
  dtype: jnp.dtype,
  implementation: str = 'auto',
  few: bool = False,
) -> jax.Array:
  """tokens_TD: the outputs of each token's experts, weighted by its gates and summed.

  Args:
    tokens_TD: input, any float type.
    gates_TK: float32 weights of the assignments in `plan.experts_TK`.
    plan: from `make_plan` of this layer's routing.
    weights: of the E experts, usually float32; cast to `dtype` inside,
      their gradients come in their own type.
    dtype: of the matrix products' operands; sums are float32.
    implementation: see `moe.ops.implementation`.
    few: whether tokens_TD, however long, has rows of only a few tokens.

  Returns:
    tokens_TD in `dtype`. Differentiable in tokens, gates and weights.
  """
  arguments = tokens_TD, gates_TK, plan, weights, jnp.dtype(dtype)
  implementations = IMPLEMENTATIONS | ({'xla': xla.routed_ffn_of_few} if few else {})
  return run('routed_ffn', implementations, implementation, *arguments)


def routed_ffn_of_stack(
  tokens_TD: jax.Array,
  gates_TK: jax.Array,
  plan: DispatchPlan,
  weights: ExpertWeights,
  first: jax.Array,
  *,
  dtype: jnp.dtype,
  implementation: str = 'auto',
) -> jax.Array:
  """As `routed_ffn`, with the weights of more experts: the plan's expert e is their `first` + e.

  Kernels read a layer's experts in place from one array of all layers' experts. A slice of it would
  first be copied: all experts of the layer, for every token that is decoded. Not differentiable.
  """
  arguments = tokens_TD, gates_TK, plan, weights, first, jnp.dtype(dtype)
  return run('routed_ffn', _OF_STACK, implementation, *arguments)
