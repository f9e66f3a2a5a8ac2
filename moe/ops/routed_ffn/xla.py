"""The routed FFN in plain XLA. A few tokens go through a few experts at a time; many go through
tiles side by side on CPU, and through grouped matmuls (`lax.ragged_dot`) elsewhere.
"""

import functools

import jax
import jax.numpy as jnp

from moe.ops.dispatch_plan import DispatchPlan
from moe.ops.implementation import platform
from moe.ops.quantized import Quantized, as_numbers
from moe.ops.routed_ffn import few, grouped, tiled
from moe.ops.routed_ffn.types import FEW, ExpertWeights
from moe.ops.rows import as_floats


def routed_ffn(
  tokens_TD: jax.Array,
  gates_TK: jax.Array,
  plan: DispatchPlan,
  weights: ExpertWeights,
  dtype: jnp.dtype,
) -> jax.Array:
  if 0 < tokens_TD.shape[0] <= FEW:
    return routed_ffn_of_few(tokens_TD, gates_TK, plan, weights, dtype)
  weights = ExpertWeights(*(_as_floats(w, dtype) for w in weights))
  return _of_many(tokens_TD, gates_TK, plan, weights, dtype)


def _as_floats(w, dtype):
  return as_numbers(w, dtype) if isinstance(w, Quantized) else as_floats(w, jnp.bfloat16)


def _of_many(*arguments):
  arrangement = tiled if platform() == 'cpu' else grouped
  return arrangement.routed_ffn(*arguments)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def routed_ffn_of_few(
  tokens_TD: jax.Array,
  gates_TK: jax.Array,
  plan: DispatchPlan,
  weights: ExpertWeights,
  dtype: jnp.dtype,
) -> jax.Array:
  """Runs few.py unless it is differentiated: then forward has the arrangement of backward, too."""
  return few.routed_ffn(tokens_TD, gates_TK, plan, weights, dtype)


def _forward(tokens_TD, gates_TK, plan, weights, dtype):
  run = lambda tokens_TD, gates_TK, weights: _of_many(tokens_TD, gates_TK, plan, weights, dtype)
  return jax.vjp(run, tokens_TD, gates_TK, weights)


def _backward(dtype, pull, d_output_TD):
  del dtype
  d_tokens_TD, d_gates_TK, d_weights = pull(d_output_TD)
  return d_tokens_TD, d_gates_TK, None, d_weights


routed_ffn_of_few.defvjp(_forward, _backward)
