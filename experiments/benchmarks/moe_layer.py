"""A MoE layer, forward and backward, beside the dense FFN with the same activated FLOPs.

T tokens, D width, F expert width, E experts, K a token. The layer has router, plan and routed
experts but no shared ones, which both sides would have. Both sides are modules of moe/layers.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments import proxy
from experiments.benchmarks.timing import Part, breakdown, compare
from moe.config import Config, from_config_dict
from moe.layers.mlp import MLP
from moe.layers.moe_layer import MoELayer
from moe.ops.combine import combine
from moe.ops.dispatch import dispatch
from moe.ops.dispatch_plan import make_plan
from moe.ops.matmul import batched, batched_nt, batched_tn, matmul
from moe.ops.routed_ffn import ExpertWeights, routed_ffn
from moe.ops.router import route

_SEQUENCES, _LENGTH = 8, 256  # T = 2048
_LANES = 4


class Shape(NamedTuple):
  d_model: int = 256
  d_expert: int = 176
  num_experts: int = 64
  experts_per_token: int = 7


def suite(rounds: int) -> list[dict]:
  small, large = Shape(), Shape(d_model=1280, d_expert=864)
  tokens, name = _SEQUENCES * _LENGTH, lambda s: f'D {s.d_model}, F {s.d_expert}, E {s.num_experts}'
  rows, alone = [], []
  for title, shape, dtype, skewed, bar in (
    ('', small, 'bfloat16', False, 2.0),
    ('', small, 'float32', False, 1.7),
    ('one expert takes 80%, ', small, 'bfloat16', True, 3.0),
    ('', large, 'bfloat16', False, 1.4),
  ):
    of, dense = f'÷ dense, {title}{name(shape)}, {dtype}', dense_ffn(shape, dtype)
    rows.append(compare(f'layer {of}', moe_layer(shape, dtype, skewed), dense, rounds, tokens, bar))
    if not skewed:
      alone.append(
        compare(f'products alone {of}', products(shape, tokens, dtype), dense, rounds, tokens)
      )
  few, many = (moe_layer(small._replace(num_experts=e), 'bfloat16') for e in (16, 256))
  rows.append(
    compare('layer, E 256 ÷ E 16, D 256, F 176, bfloat16', many, few, rounds, tokens, 1.4)
  )
  sides = products(small._replace(num_experts=256), tokens, 'bfloat16'), few
  alone.append(compare('products alone of E 256 ÷ layer, E 16, bfloat16', *sides, rounds, tokens))
  whole = moe_layer(small, 'bfloat16')
  return (
    rows
    + alone
    + breakdown('layer', whole, parts(small, tokens, 'bfloat16'), peak('bfloat16'), rounds)
  )


def moe_layer(shape: Shape, dtype: str, skewed: bool = False) -> Callable[[], None]:
  """A function that runs the layer and all its gradients once. `skewed`: 80% of the tokens choose
  expert 0, among others.
  """
  config, draw = _config(shape, dtype), Draw(dtype)
  layer = MoELayer(config)
  e, d, f = shape.num_experts, shape.d_model, shape.d_expert
  router_DE, u_TD = np.array(draw(d, e)), np.array(draw(_SEQUENCES * _LENGTH, d), np.float32)
  if skewed:
    router_DE[0], u_TD[:, 0] = 0, 0
    router_DE[0, 0] = 30
    u_TD[: round(0.8 * len(u_TD)), 0] = 1
  params = {
    'router': {'experts': jnp.asarray(router_DE)},
    'experts': {'gate': draw(e, d, f), 'up': draw(e, d, f), 'down': draw(e, f, d)},
  }
  ids_BL = jnp.zeros((_SEQUENCES, _LENGTH), jnp.int32)
  return with_gradients(
    lambda u_BLD, params: layer.apply({'params': params}, u_BLD, ids_BL, ids_BL == 0)[0],
    (jnp.asarray(u_TD, dtype).reshape(_SEQUENCES, _LENGTH, d), params),
  )


def dense_ffn(shape: Shape, dtype: str) -> Callable[[], None]:
  """A function that runs a SwiGLU FFN of width K · F and all its gradients once."""
  width, d, draw = shape.experts_per_token * shape.d_expert, shape.d_model, Draw(dtype)
  layer = MLP(_config(shape, dtype), width)
  params = {'gate': draw(d, width), 'up': draw(d, width), 'down': draw(width, d)}
  return with_gradients(
    lambda u, params: layer.apply({'params': params}, u),
    (draw.tokens(_SEQUENCES, _LENGTH, d), params),
  )


def parts(shape: Shape, tokens: int, dtype: str, times: int = 1) -> list[Part]:
  """The steps of a layer, each forward and backward. `matmuls` are the experts' products alone,
  with rows dealt evenly; the routed FFN does dispatch, matmuls and combine in one loop on CPU.
  """
  e, d, f, k, draw = (
    shape.num_experts,
    shape.d_model,
    shape.d_expert,
    shape.experts_per_token,
    Draw(dtype),
  )
  logits_1TE = jnp.asarray(np.random.default_rng(1).normal(size=(1, tokens, e)), jnp.float32)
  experts_TK = lax.top_k(logits_1TE[0], k)[1]
  gates_TK = jnp.ones((tokens, k), jnp.float32)
  x_TD, rows_RD = draw.tokens(tokens, d), draw.tokens(tokens * k, d)
  plan_only = jax.jit(lambda ids: make_plan(ids, e))
  plan = plan_only(experts_TK)
  weights = ExpertWeights(draw(e, d, f), draw(e, d, f), draw(e, f, d))
  real_1T = jnp.ones((1, tokens), bool)
  routed = lambda x, g, w: routed_ffn(x, g, plan, w, dtype=jnp.dtype(dtype))
  router = lambda u, w: route(matmul(u.astype(jnp.float32), w)[None], real_1T, k).gates_BLK
  return [
    Part('router', with_gradients(router, (x_TD, draw(d, e))), 6 * tokens * d * e, times),
    Part('plan', lambda: jax.block_until_ready(plan_only(experts_TK)), 0, times),
    Part('dispatch', with_gradients(lambda x: dispatch(x, plan), (x_TD,)), 0, times),
    Part('matmuls', products(shape, tokens, dtype), 18 * (tokens * k // e) * e * d * f, times),
    Part(
      'combine', with_gradients(lambda r, g: combine(r, g, plan), (rows_RD, gates_TK)), 0, times
    ),
    Part(
      'routed FFN',
      with_gradients(routed, (x_TD, gates_TK, weights)),
      18 * tokens * k * d * f,
      times,
    ),
  ]


def peak(dtype: str) -> Part:
  """One big product, (2048, 1024) × (1024, 2048): the speed of the matrix units in this run."""
  draw = Draw(dtype)
  a, b, run = draw.tokens(2048, 1024), draw.tokens(1024, 2048), jax.jit(matmul)
  return Part('big product', lambda: jax.block_until_ready(run(a, b)), 2 * 2048 * 1024 * 2048)


def products(shape: Shape, tokens: int, dtype: str) -> Callable[[], None]:
  """A function that runs the products of the experts, forward and backward, and nothing between
  them, for `_LANES` experts at a time.

  Rows are dealt evenly, weights are already in the compute type; it gathers and pads nothing and
  keeps no gradient. It is one arrangement of the products, not a bound: over whole arrays of
  experts some run faster, some slower.
  """
  e, d, f, draw = shape.num_experts, shape.d_model, shape.d_expert, Draw(dtype)
  rows = tokens * shape.experts_per_token // e
  x_nrD, h_nrF, gu_nrG = (draw.tokens(_LANES, rows, width) for width in (d, f, 2 * f))
  gate_up_EDG, down_EFD = draw.tokens(e, d, 2 * f), draw.tokens(e, f, d)

  @jax.jit
  def run(x_nrD, h_nrF, gu_nrG):
    def step(index, total):
      gate_up_nDG, down_nFD = (
        lax.dynamic_slice_in_dim(w, index * _LANES, _LANES) for w in (gate_up_EDG, down_EFD)
      )
      # Makes the products depend on `total`, or the compiler would move them out of the loop.
      x, h = (a + (total * 0).astype(a.dtype) for a in (x_nrD, h_nrF))
      forward = batched(x, gate_up_nDG), batched(h, down_nFD)
      backward = batched_nt(x, down_nFD), batched_nt(gu_nrG, gate_up_nDG)
      weights = batched_tn(x, gu_nrG), batched_tn(h, x)
      return total + sum(y[0, 0, 0] for y in (*forward, *backward, *weights))

    return lax.fori_loop(0, e // _LANES, step, jnp.zeros(()))

  return lambda: jax.block_until_ready(run(x_nrD, h_nrF, gu_nrG))


class Draw:
  """Random arrays: parameters in float32, or `tokens` in the compute type."""

  def __init__(self, dtype: str):
    self.dtype, self.generator = dtype, np.random.default_rng(0)

  def __call__(self, *shape: int) -> jax.Array:
    return jnp.asarray(self.generator.normal(scale=0.05, size=shape), jnp.float32)

  def tokens(self, *shape: int) -> jax.Array:
    return jnp.asarray(self.generator.normal(size=shape), self.dtype)


def _config(shape: Shape, dtype: str) -> Config:
  return with_shape(from_config_dict(proxy.get_config('deepseek_moe')), shape, dtype)


def with_shape(config: Config, shape, dtype: str) -> Config:
  """The config with a layer's sizes, without shared experts.
  shape: a `Shape`, or one of moe/planner/kernels/programs.py.
  """
  return dataclasses.replace(
    config,
    model=dataclasses.replace(config.model, d_model=shape.d_model, dtype=dtype),
    moe=dataclasses.replace(
      config.moe,
      num_experts=shape.num_experts,
      experts_per_token=shape.experts_per_token,
      d_expert=shape.d_expert,
      num_shared_experts=0,
    ),
  )


def with_gradients(function, arguments):
  """A function that runs function(*arguments) and the gradients of every argument, for a cotangent
  of ones.
  """

  @jax.jit
  def run(arguments):
    y, pull = jax.vjp(function, *arguments)
    return y, pull(jnp.ones_like(y))

  return lambda: jax.block_until_ready(run(arguments))
