"""The ops at a layer's shape, and random arrays for them, drawn on the device.

Floats are exact in bfloat16, so that both types have the same true results. Experts are chosen
unevenly, as routers do.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from moe.ops.attention import attention
from moe.ops.combine import combine
from moe.ops.dispatch import dispatch
from moe.ops.dispatch_plan import DispatchPlan, make_plan
from moe.ops.grouped_matmul import grouped_matmul
from moe.ops.routed_ffn import ExpertWeights, routed_ffn
from moe.ops.router import route
from moe.planner.kernels.programs import Shape


class Op(NamedTuple):
  """An op and what it is given."""

  call: Callable  # (type, implementation, *floats, *others)
  floats: tuple  # the differentiable arguments
  others: tuple
  flops: int = 0  # of its products, forward


class Draw:
  """Random arrays of a layer's shape; each call draws new ones."""

  def __init__(self, shape: Shape, dtype: str):
    self.shape, self.dtype, self._key = shape, dtype, jax.random.key(0)

  def key(self) -> jax.Array:
    self._key, key = jax.random.split(self._key)
    return key

  def normal(self, *dims: int, scale: float = 1.0, of: str | None = None) -> jax.Array:
    """Numbers from N(0, scale²), exact in bfloat16 if `scale` is a power of two."""
    drawn = jax.random.normal(self.key(), dims, jnp.bfloat16) * scale
    return drawn.astype(of or self.dtype)

  def matrices(self, rows: int, columns: int, of: str) -> jax.Array:
    """One matrix for each expert, scaled to about keep the size of what it multiplies."""
    scale = 2.0 ** -(rows.bit_length() // 2)
    return self.normal(self.shape.num_experts, rows, columns, scale=scale, of=of)

  def plan(self) -> DispatchPlan:
    tokens, experts = self.shape.tokens, self.shape.num_experts
    popular_E = 0.5 * self.normal(experts, of='float32')
    scores_TE = self.normal(tokens, experts, of='float32') + popular_E[None]
    chosen_TK = lax.top_k(scores_TE, self.shape.experts_per_token)[1]
    return jax.jit(make_plan, static_argnums=1)(chosen_TK, experts)

  def gates(self) -> jax.Array:
    return jnp.abs(self.normal(self.shape.tokens, self.shape.experts_per_token, of='float32'))


def _router(draw: Draw) -> Op:
  s = draw.shape
  order_BLE = jnp.argsort(draw.normal(s.sequences, s.length, s.num_experts), axis=-1)
  # A token's logits lie so far apart that no rounding changes their order.
  jitter_BLE = jax.random.uniform(draw.key(), order_BLE.shape, maxval=0.5)
  is_token_BL = jnp.ones(order_BLE.shape[:2], bool)

  def call(dtype, which, logits_BLE, is_token_BL):
    return route(logits_BLE, is_token_BL, s.experts_per_token, implementation=which)

  return Op(call, ((order_BLE + jitter_BLE) / 8,), (is_token_BL,))


def _dispatch(draw: Draw) -> Op:
  def call(dtype, which, tokens_TD, plan):
    return dispatch(tokens_TD, plan, implementation=which)

  return Op(call, (draw.normal(draw.shape.tokens, draw.shape.d_model),), (draw.plan(),))


def _combine(draw: Draw) -> Op:
  def call(dtype, which, rows_RD, gates_TK, plan):
    return combine(rows_RD, gates_TK, plan, implementation=which)

  rows = draw.shape.tokens * draw.shape.experts_per_token
  return Op(call, (draw.normal(rows, draw.shape.d_model), draw.gates()), (draw.plan(),))


def _grouped_matmul(draw: Draw) -> Op:
  def call(dtype, which, *given):
    return grouped_matmul(*given, implementation=which)

  s = draw.shape
  rows = s.tokens * s.experts_per_token
  floats = draw.normal(rows, s.d_model), draw.matrices(s.d_model, s.d_expert, draw.dtype)
  return Op(call, floats, (draw.plan().group_sizes_E,), 2 * rows * s.d_model * s.d_expert)


def _routed_ffn(draw: Draw) -> Op:
  def call(dtype, which, tokens_TD, gates_TK, weights, plan):
    of = jnp.dtype(dtype)
    return routed_ffn(tokens_TD, gates_TK, plan, weights, dtype=of, implementation=which)

  s = draw.shape
  d, f, rows = s.d_model, s.d_expert, s.tokens * s.experts_per_token
  weights = ExpertWeights(*(draw.matrices(*of, 'float32') for of in ((d, f), (d, f), (f, d))))
  floats = draw.normal(s.tokens, d), draw.gates(), weights
  return Op(call, floats, (draw.plan(),), 6 * rows * d * f)


def _attention(draw: Draw) -> Op:
  def call(dtype, which, *given):
    return attention(*given, implementation=which)

  s = draw.shape
  heads = (draw.normal(s.sequences, s.length, s.num_heads, s.head_dim) for _ in range(3))
  # Two products, over the pairs that the causal mask leaves.
  flops = 4 * s.sequences * s.num_heads * s.head_dim * (s.length * (s.length + 1) // 2)
  return Op(call, tuple(heads), (jnp.ones((s.sequences, s.length), jnp.int32),), flops)


OPS: dict[str, Callable[[Draw], Op]] = {
  'router': _router,
  'dispatch': _dispatch,
  'combine': _combine,
  'grouped_matmul': _grouped_matmul,
  'routed_ffn': _routed_ffn,
  'attention': _attention,
}


def op(name: str, shape: Shape, dtype: str) -> Op:
  return OPS[name](Draw(shape, dtype))


def num_bytes(tree: Any) -> int:
  """Bytes of a tree of arrays, or of their shapes."""
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
