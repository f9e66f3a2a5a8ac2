"""The MoE layer, forward and backward, timed in turn with a dense FFN of the same activated FLOPs,
with itself through `lax.ragged_dot`, and with itself under forced balanced routing.

It has router, plan and routed experts in bfloat16, but no shared ones, which both sides would have.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp

from experiments.benchmarks.device import clock
from experiments.benchmarks.device.drawn import Draw, num_bytes
from experiments.benchmarks.device.kept import kept
from experiments.benchmarks.device.records import rates, record
from experiments.benchmarks.moe_layer import with_shape
from moe.config import Config, defaults, from_config_dict
from moe.layers.mlp import MLP
from moe.layers.moe_layer import MoELayer
from moe.metrics.routing import load_over_mean
from moe.ops.routed_ffn import api, grouped
from moe.planner.kernels.programs import Shape

OTHERS = ('dense', 'ragged_dot', 'balanced routing')


class _Layer(NamedTuple):
  run: Callable
  given: tuple  # tokens, parameters
  max_vio: float


def records(shape: Shape, other: str, rounds: int) -> list[dict]:
  """The record of the layer over one of OTHERS."""
  layer = kept(('layer', shape), lambda: _moe(shape))
  ours, theirs = (lambda: layer.run(*layer.given)), _other(shape, other, layer)
  name = f'layer {shape.name} bfloat16 ÷ {other}'
  row = clock.compare(name, ours, theirs, rounds, shape.tokens)
  t, d, e = shape.tokens, shape.d_model, shape.num_experts
  flops = 18 * t * shape.experts_per_token * d * shape.d_expert + 6 * t * d * e
  # Tokens and weights are read once each way and their gradients written; outputs are written and
  # their cotangents read.
  moved = 3 * num_bytes(layer.given) + 2 * num_bytes(layer.given[0])
  return [record(**row, max_vio=layer.max_vio, **rates(row['ms'], flops, moved))]


def _other(shape: Shape, other: str, layer: _Layer) -> Callable:
  if other == 'dense':
    width = shape.experts_per_token * shape.d_expert
    draw, d = Draw(shape, 'float32'), shape.d_model
    params = {'gate': draw.normal(d, width), 'up': draw.normal(d, width)}
    given = layer.given[0], params | {'down': draw.normal(width, d)}
    dense = MLP(_config(shape), width)
    apply = lambda u_BLD, params: (dense.apply({'params': params}, u_BLD), ())
    run, _ = clock.compiled(_with_gradients(apply), *given)
    return lambda: run(*given)
  if other == 'balanced routing':
    run = _compiled(_config(shape, balanced=True), layer.given)
  else:
    # Replaces whatever would run: dispatch, lax.ragged_dot and combine in plain XLA.
    through = dict.fromkeys(api.IMPLEMENTATIONS, grouped.routed_ffn)
    with mock.patch.dict(api.IMPLEMENTATIONS, through):
      run = _compiled(_config(shape), layer.given)
  return lambda: run(*layer.given)


def _moe(shape: Shape) -> _Layer:
  draw, e, d, f = Draw(shape, 'float32'), shape.num_experts, shape.d_model, shape.d_expert
  names, widths = ('gate', 'up', 'down'), ((d, f), (d, f), (f, d))
  experts = {name: draw.matrices(*of, 'float32') for name, of in zip(names, widths, strict=True)}
  params = {'router': {'experts': draw.normal(d, e, scale=1 / 64)}, 'experts': experts}
  given = draw.normal(shape.sequences, shape.length, d, of='bfloat16'), params
  run = _compiled(_config(shape), given)
  counts_1E = run(*given)[2].sum(axis=0, keepdims=True)
  return _Layer(run, given, float(load_over_mean(counts_1E).max()) - 1)


def _compiled(config: Config, given: tuple) -> Callable:
  layer, shape = MoELayer(config), given[0].shape[:2]
  ids_BL, is_token_BL = jnp.zeros(shape, jnp.int32), jnp.ones(shape, bool)

  def apply(u_BLD, params):
    y_BLD, aside = layer.apply({'params': params}, u_BLD, ids_BL, is_token_BL)
    return y_BLD, aside.stats.counts_BE

  return clock.compiled(_with_gradients(apply), *given)[0]


def _with_gradients(apply):
  """A function that gives y, the gradients of everything for y as cotangent, and what `apply` gives
  beside y.
  """

  def run(*given):
    y, pull, beside = jax.vjp(apply, *given, has_aux=True)
    return y, pull(y), beside

  return run


def _config(shape: Shape, balanced: bool = False) -> Config:
  config = with_shape(from_config_dict(defaults()), shape, 'bfloat16')
  ops = dataclasses.replace(config.ops, force_balanced_routing=balanced)
  return dataclasses.replace(config, ops=ops)
