"""The router as two Mosaic kernels: softmax, top-k and every sum from one reading of the
logits, and their gradient.

Any B, L, K ≤ E; a step handles up to 512 tokens of one sequence and all E experts,
so E is at most a few thousand.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from moe.ops.implementation import interpret
from moe.ops.kernels import Kernel
from moe.ops.router import reference
from moe.ops.router.types import Routing, RoutingStats

_ROUTER = Kernel('router')
_D_LOGITS = Kernel('router_d_logits', backward=True)
KERNELS = (_ROUTER, _D_LOGITS)
# Tokens of a grid step; l in suffixes.
TOKENS = 512


def route(logits_BLE: jax.Array, is_token_BL: jax.Array, experts_per_token: int) -> Routing:
  if is_token_BL.size == 0:
    return reference.route(logits_BLE, is_token_BL, experts_per_token)
  gates_BLK, experts_BLK, counts, sums = _route(
    logits_BLE.astype(jnp.float32), is_token_BL, experts_per_token
  )
  probability_sums, entropy_sums, z_sums = (x[:, 0] for x in sums)
  return Routing(
    gates_BLK,
    experts_BLK,
    RoutingStats(counts[:, 0], probability_sums, entropy_sums[:, 0], z_sums[:, 0]),
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _route(logits_BLE, is_token_BL, k):
  """gates_BLK, experts_BLK, counts_B1E, (probability_sums_B1E, entropy_sums_B11, z_sums_B11)."""
  batch, length, num_experts = logits_BLE.shape
  by_token, by_sequence, grid = _specs(batch, length)
  shape = lambda *dims, of=jnp.float32: jax.ShapeDtypeStruct((batch, *dims), of)
  gates, experts, counts, *sums = pl.pallas_call(
    functools.partial(_route_kernel, length=length, k=k),
    name=_ROUTER.name,
    grid=grid,
    in_specs=[by_token(num_experts), by_token(1)],
    out_specs=[
      by_token(k),
      by_token(k),
      *(by_sequence(width) for width in (num_experts, num_experts, 1, 1)),
    ],
    out_shape=[
      shape(length, k),
      shape(length, k, of=jnp.int32),
      shape(1, num_experts, of=jnp.int32),
      shape(1, num_experts),
      shape(1, 1),
      shape(1, 1),
    ],
    compiler_params=pltpu.CompilerParams(dimension_semantics=('parallel', 'arbitrary')),
    cost_estimate=_cost(
      logits_BLE.size, per_logit=10 + 6 * k, tokens=batch * length, per_token=8 * k
    ),
    interpret=interpret(),
  )(logits_BLE, is_token_BL.astype(jnp.float32)[:, :, None])
  return gates, experts, counts, tuple(sums)


def _route_kernel(
  logits_ref,
  is_token_ref,
  gates_ref,
  experts_ref,
  counts_ref,
  probability_ref,
  entropy_ref,
  z_ref,
  *,
  length,
  k,
):
  log_affinities_lE, affinities_lE, log_sum_l1 = _softmax(logits_ref[...])
  expert_lE = lax.broadcasted_iota(jnp.int32, affinities_lE.shape, 1).astype(jnp.float32)
  # NaN ranks as the largest, as in lax.top_k. Whatever the logits,
  # a token's experts must be distinct and exist.
  left_lE = jnp.where(affinities_lE != affinities_lE, 2.0, affinities_lE)
  choice_lK = lax.broadcasted_iota(jnp.int32, gates_ref.shape, 1)
  gates_lK, experts_lK = (
    jnp.zeros(gates_ref.shape, jnp.float32),
    jnp.zeros(gates_ref.shape, jnp.float32),
  )
  chosen_lE = jnp.zeros(affinities_lE.shape, jnp.float32)
  for choice in range(k):
    largest_l1 = left_lE.max(axis=1, keepdims=True)
    # Of equal affinities the first.
    index_l1 = jnp.where(left_lE == largest_l1, expert_lE, jnp.inf).min(axis=1, keepdims=True)
    mine_lE = expert_lE == index_l1
    gate_l1 = jnp.where(mine_lE, affinities_lE, 0).sum(axis=1, keepdims=True)
    gates_lK = jnp.where(choice_lK == choice, gate_l1, gates_lK)
    experts_lK = jnp.where(choice_lK == choice, index_l1, experts_lK)
    chosen_lE = jnp.where(mine_lE, 1.0, chosen_lE)
    left_lE = jnp.where(mine_lE, -1.0, left_lE)
  gates_ref[...], experts_ref[...] = gates_lK, experts_lK.astype(jnp.int32)

  real_l1 = _real(is_token_ref, length)
  over_tokens = lambda x: jnp.where(real_l1, x, 0).sum(axis=0, keepdims=True)
  _add(counts_ref, over_tokens(chosen_lE).astype(jnp.int32))
  _add(probability_ref, over_tokens(affinities_lE))
  _add(entropy_ref, -over_tokens((affinities_lE * log_affinities_lE).sum(axis=1, keepdims=True)))
  _add(z_ref, over_tokens(log_sum_l1 * log_sum_l1))


def _forward(logits_BLE, is_token_BL, k):
  outputs = _route(logits_BLE, is_token_BL, k)
  return outputs, (logits_BLE, is_token_BL, outputs[1])


def _backward(k, residuals, cotangents):
  logits_BLE, is_token_BL, experts_BLK = residuals
  d_gates_BLK, _, _, (d_probability_B1E, d_entropy_B11, d_z_B11) = cotangents
  batch, length, num_experts = logits_BLE.shape
  by_token, by_sequence, grid = _specs(batch, length)
  d_logits_BLE = pl.pallas_call(
    functools.partial(_backward_kernel, length=length, k=k),
    name=_D_LOGITS.name,
    grid=grid,
    in_specs=[
      *(by_token(width) for width in (num_experts, 1, k, k)),
      *(by_sequence(width) for width in (num_experts, 1, 1)),
    ],
    out_specs=by_token(num_experts),
    out_shape=jax.ShapeDtypeStruct(logits_BLE.shape, jnp.float32),
    compiler_params=pltpu.CompilerParams(dimension_semantics=('parallel', 'arbitrary')),
    cost_estimate=_cost(
      2 * logits_BLE.size, per_logit=8 + k, tokens=batch * length, per_token=8 * k
    ),
    interpret=interpret(),
  )(
    logits_BLE,
    is_token_BL.astype(jnp.float32)[:, :, None],
    experts_BLK,
    d_gates_BLK,
    d_probability_B1E,
    d_entropy_B11,
    d_z_B11,
  )
  return d_logits_BLE, None


_route.defvjp(_forward, _backward)


def _backward_kernel(
  logits_ref,
  is_token_ref,
  experts_ref,
  d_gates_ref,
  d_probability_ref,
  d_entropy_ref,
  d_z_ref,
  out_ref,
  *,
  length,
  k,
):
  log_affinities_lE, affinities_lE, log_sum_l1 = _softmax(logits_ref[...])
  expert_lE = lax.broadcasted_iota(jnp.int32, affinities_lE.shape, 1)
  real_l1 = _real(is_token_ref, length)
  # −s log s has the derivative −log s − 1, whose constant cancels in the softmax's gradient.
  d_sums_lE = d_probability_ref[...] - d_entropy_ref[...] * log_affinities_lE
  d_affinities_lE = jnp.where(real_l1, d_sums_lE, 0)
  for choice in range(k):
    mine_lE = expert_lE == experts_ref[:, choice : choice + 1]
    d_affinities_lE += jnp.where(mine_lE, d_gates_ref[:, choice : choice + 1], 0)
  mean_l1 = (affinities_lE * d_affinities_lE).sum(axis=1, keepdims=True)
  d_z_l1 = jnp.where(real_l1, 2 * d_z_ref[...] * log_sum_l1, 0)
  out_ref[...] = affinities_lE * (d_affinities_lE - mean_l1 + d_z_l1)


def _softmax(logits_lE):
  """log s, s = softmax(logits), logsumexp(logits)."""
  largest_l1 = logits_lE.max(axis=1, keepdims=True)
  shifted_lE = logits_lE - largest_l1
  log_sum_l1 = jnp.log(jnp.exp(shifted_lE).sum(axis=1, keepdims=True))
  log_affinities_lE = shifted_lE - log_sum_l1
  return log_affinities_lE, jnp.exp(log_affinities_lE), largest_l1 + log_sum_l1


def _real(is_token_ref, length):
  """bool (l, 1): whether the token exists and is not padding. Past L a block may hold anything."""
  rows = is_token_ref.shape[0]
  position = lax.broadcasted_iota(jnp.int32, is_token_ref.shape, 0) + pl.program_id(1) * rows
  return (position < length) & (is_token_ref[...] != 0)


def _add(ref, value):
  """Adds to a sum over the steps of a sequence, which the first step begins."""
  before = jnp.where(pl.program_id(1) == 0, jnp.zeros_like(value), ref[...])
  ref[...] = before + value


def _specs(batch, length):
  tokens = min(TOKENS, pl.cdiv(length, 8) * 8)
  by_token = lambda width: pl.BlockSpec((None, tokens, width), lambda b, i: (b, i, 0))
  by_sequence = lambda width: pl.BlockSpec((None, 1, width), lambda b, i: (b, 0, 0))
  return by_token, by_sequence, (batch, pl.cdiv(length, tokens))


def _cost(logits, *, per_logit, tokens, per_token):
  return pl.CostEstimate(
    flops=logits * per_logit,
    transcendentals=2 * logits,
    bytes_accessed=4 * logits + tokens * (per_token + 4),
  )
