"""route as two Triton kernels, one program a block of one sequence's tokens, float32 throughout.

Forward: softmax, K rounds of argmax, and the block's share of every sum; XLA adds the shares, in a
fixed order. Backward: the gradient of the logits from those of the gates and of the sums,
with the softmax recomputed.
A block holds all E affinities of its tokens, with E rounded up to a power of two inside;
E up to a few thousand fits.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from moe.ops.gpu.kernels import Span, call, load, power_of_two, span, store
from moe.ops.kernels import Kernel
from moe.ops.router.types import Routing, RoutingStats

_ROUTER = Kernel('router')
_D_LOGITS = Kernel('router_backward', backward=True)
KERNELS = (_ROUTER, _D_LOGITS)
# Elements of a block of tokens × experts: 16 registers a thread, for each of half a dozen arrays.
_ELEMENTS = 2048
_CHOSEN, _PADDING = -2.0, -1.0  # below every affinity


def route(logits_BLE: jax.Array, is_token_BL: jax.Array, experts_per_token: int) -> Routing:
  gates_BLK, probability_sums_BE, entropy_sums_B, z_sums_B, experts_BLK, counts_BE = _route(
    logits_BLE, is_token_BL, experts_per_token
  )
  return Routing(
    gates_BLK, experts_BLK, RoutingStats(counts_BE, probability_sums_BE, entropy_sums_B, z_sums_B)
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _route(logits_BLE, is_token_BL, k):
  """The differentiable results first, then experts_BLK and counts_BE."""
  (sequences, length, num_experts), blocks = logits_BLE.shape, _Blocks(*logits_BLE.shape)
  floats = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
  integers = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32)
  per_block = sequences * blocks.per_sequence
  outputs = [
    *(
      floats(sequences * length * k),
      floats(per_block, num_experts),
      floats(per_block),
      floats(per_block),
    ),
    *(integers(sequences * length * k), integers(per_block, num_experts)),
  ]

  def kernel(
    program,
    logits_ref,
    real_ref,
    gates_ref,
    probability_ref,
    entropy_ref,
    z_ref,
    experts_ref,
    counts_ref,
  ):
    tokens, experts = blocks.spans(program)
    s = _softmax(load(logits_ref, tokens, experts), blocks.num_experts)
    real = load(real_ref, tokens)
    remaining = jnp.where(experts.index[None, :] < num_experts, s.affinities, _PADDING)
    for choice in range(k):
      # Of equal affinities argmax takes the lowest index, as lax.top_k does.
      expert, place = (
        jnp.argmax(remaining, axis=1).astype(jnp.int32),
        blocks.choice(tokens, choice, k),
      )
      store(gates_ref, remaining.max(axis=1), place)
      store(experts_ref, expert, place)
      remaining = jnp.where(experts.index[None, :] == expert[:, None], _CHOSEN, remaining)
    counted = jnp.where((remaining == _CHOSEN) & (real[:, None] > 0), 1, 0)
    store(counts_ref, counted.sum(axis=0), experts, leading=(program,))
    store(probability_ref, (s.affinities * real[:, None]).sum(axis=0), experts, leading=(program,))
    entropy_ref[program] = (s.entropy * real).sum()
    z_ref[program] = (s.log_sum * s.log_sum * real).sum()

  results = blocks.call(_ROUTER.name, kernel, outputs, logits_BLE, is_token_BL)
  gates, probability, entropy, z, experts, counts = results
  over_blocks = lambda x: x.reshape(sequences, blocks.per_sequence, *x.shape[1:]).sum(axis=1)
  choices = lambda x: x.reshape(sequences, length, k)
  sums = (over_blocks(x) for x in (probability, entropy, z))
  return choices(gates), *sums, choices(experts), over_blocks(counts)


def _forward(logits_BLE, is_token_BL, k):
  results = _route(logits_BLE, is_token_BL, k)
  return results, (logits_BLE, is_token_BL, results[4])


def _backward(k, residuals, cotangents):
  logits_BLE, is_token_BL, experts_BLK = residuals
  num_experts, blocks = logits_BLE.shape[2], _Blocks(*logits_BLE.shape)
  flat = lambda x: x.reshape(-1)

  def kernel(
    program,
    logits_ref,
    real_ref,
    experts_ref,
    d_gates_ref,
    d_sums_ref,
    d_entropy_ref,
    d_z_ref,
    d_logits_ref,
  ):
    tokens, experts = blocks.spans(program)
    s, sequence = (
      _softmax(load(logits_ref, tokens, experts), num_experts),
      program // blocks.per_sequence,
    )
    real = load(real_ref, tokens)[:, None]
    d_affinities = load(d_sums_ref, experts, leading=(sequence,))[None, :] * real
    for choice in range(k):
      place = blocks.choice(tokens, choice, k)
      mine = experts.index[None, :] == load(experts_ref, place)[:, None]
      d_affinities += jnp.where(mine, load(d_gates_ref, place)[:, None], 0.0)
    mean = (s.affinities * d_affinities).sum(axis=1)[:, None]
    # ∂H/∂logit = −s (log s + H), ∂ logsumexp²/∂logit = 2 logsumexp · s
    surprise = jnp.where(s.affinities > 0, s.log_affinities, 0.0) + s.entropy[:, None]
    of_sums = 2 * d_z_ref[sequence] * s.log_sum[:, None] - d_entropy_ref[sequence] * surprise
    store(d_logits_ref, s.affinities * (d_affinities - mean + of_sums * real), tokens, experts)

  d_gates_BLK, d_sums_BE, d_entropy_B, d_z_B, *_ = cotangents
  output = jax.ShapeDtypeStruct((logits_BLE.size // num_experts, num_experts), jnp.float32)
  operands = flat(experts_BLK), flat(d_gates_BLK), d_sums_BE, d_entropy_B, d_z_B
  [d_logits] = blocks.call(_D_LOGITS.name, kernel, [output], logits_BLE, is_token_BL, *operands)
  return d_logits.reshape(logits_BLE.shape), None


_route.defvjp(_forward, _backward)


class _Blocks:
  """Blocks of tokens, each of one sequence, with all their experts."""

  def __init__(self, sequences: int, length: int, num_experts: int):
    self.sequences, self.length, self.num_experts = sequences, length, num_experts
    self.experts = power_of_two(num_experts, 1 << 30)
    self.tokens = max(1, _ELEMENTS // self.experts)
    self.per_sequence = pl.cdiv(length, self.tokens)

  def spans(self, program) -> tuple[Span, Span]:
    """The spans of the program's tokens, and of all experts, in an array (B·L, E)."""
    sequence, block = program // self.per_sequence, program % self.per_sequence
    own = span(block * self.tokens, self.tokens, self.length)
    return Span(sequence * self.length + own.index, own.inside), span(
      0, self.experts, self.num_experts
    )

  def choice(self, tokens: Span, choice: int, k: int) -> Span:
    """The span of the tokens' `choice` in a flattened (B, L, K) array."""
    return Span(tokens.index * k + choice, tokens.inside)

  def call(self, name, kernel, outputs, logits_BLE, is_token_BL, *operands) -> list[jax.Array]:
    """The outputs of `kernel` on every block; zeros if there is no token."""
    if logits_BLE.size == 0:
      return [jnp.zeros(x.shape, x.dtype) for x in outputs]
    real = is_token_BL.astype(jnp.float32).reshape(-1)
    logits = logits_BLE.reshape(-1, self.num_experts)
    return call(name, kernel, self.sequences * self.per_sequence, outputs, logits, real, *operands)


class _Softmax(NamedTuple):
  affinities: jax.Array  # (tokens, experts), zero in the padding
  log_affinities: jax.Array  # −∞ in the padding
  log_sum: jax.Array  # (tokens,): logsumexp of the logits
  entropy: jax.Array  # (tokens,), in nats


def _softmax(logits, num_experts) -> _Softmax:
  is_expert = (jnp.arange(logits.shape[1], dtype=jnp.int32) < num_experts)[None, :]
  logits = jnp.where(is_expert, logits, -jnp.inf)
  largest = logits.max(axis=1)
  log_sum = jnp.log(jnp.exp(logits - largest[:, None]).sum(axis=1))
  log_affinities = logits - largest[:, None] - log_sum[:, None]
  affinities = jnp.exp(log_affinities)
  entropy = -jnp.where(is_expert, affinities * log_affinities, 0.0).sum(axis=1)
  return _Softmax(affinities, log_affinities, largest + log_sum, entropy)
