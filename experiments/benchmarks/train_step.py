"""A whole training step of the DeepSeekMoE proxy beside a dense one,
and beside itself through `lax.ragged_dot`.
"""

import contextlib
import dataclasses
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from experiments import proxy
from experiments.benchmarks import moe_layer, transformers_step
from experiments.benchmarks.timing import Part, breakdown, by_scope, compare
from moe.config import Config, from_config_dict
from moe.data.packing import Batch
from moe.layers.mlp import MLP
from moe.losses.cross_entropy import cross_entropy
from moe.metrics import profile
from moe.metrics.profile import Row
from moe.ops.attention import attention
from moe.ops.routed_ffn import grouped, tiled
from moe.optimizer import hyperparameters, make_optimizer
from moe.parallel.compiler import compiler_options
from moe.parameters import decayed
from moe.train_step import init_state, make_train_step

_PROFILES = 3  # of the step: each takes a second
# Bars of time ratios: for the dense model as many tokens a second as transformers; for DeepSeekMoE
# 1.15 times as many as with its fastest experts, in bfloat16 1.3 times, if the CPU multiplies that.
_OVER_TRANSFORMERS = (
  ('dense', 'float32', 1.0),
  ('deepseek_moe', 'float32', 1 / 1.15),
  ('deepseek_moe', 'bfloat16', 1 / 1.3),
)


def proxy_suite(rounds: int) -> list[dict]:
  """DeepSeekMoE over a dense model with as many activated parameters, in both types."""
  return [_beside_dense(dtype, rounds, None) for dtype in ('float32', 'bfloat16')]


def suite(rounds: int) -> list[dict]:
  """Times the step beside dense in both types, and in bfloat16 beside `ragged_dot` (2 of the 16
  sequences), its parts alone, and all of it by named scope.
  """
  config = _typed(from_config_dict(proxy.get_config('deepseek_moe')), 'bfloat16')
  few = dataclasses.replace(config, data=dataclasses.replace(config.data, batch_size=2))
  rows = [_beside_dense('bfloat16', rounds, 1.6), _beside_dense('float32', rounds, 1.3)]
  ours = train_step(few)
  with _through_ragged_dot():
    theirs = train_step(few)
  name = 'train step ÷ through ragged_dot, 2 sequences, bfloat16'
  rows.append(compare(name, ours, theirs, rounds, 2 * config.data.seq_len, 0.2))
  rows += breakdown('step', train_step(config), _parts(config), moe_layer.peak('bfloat16'), rounds)
  return rows + by_scope('step by scope', profiles(config, min(rounds, _PROFILES)))


def beside_transformers(rounds: int) -> list[dict]:
  """The steps of the model and of its dense twin beside those of Hugging Face's transformers."""
  config, rows = from_config_dict(proxy.get_config('deepseek_moe')), []
  for model, dtype, bar in _OVER_TRANSFORMERS:
    if dtype == 'bfloat16' and not transformers_step.has_bfloat16_units():
      print('this CPU has no bfloat16 units: without that row', file=sys.stderr)
      continue
    ours = _typed(config if model == 'deepseek_moe' else dense_twin(config), dtype)
    theirs, how = transformers_step.train_step(ours, words(ours))
    name = f'train step, {model}, {dtype} ÷ transformers{how}'
    tokens = ours.data.batch_size * ours.data.seq_len
    rows.append(compare(name, train_step(ours), theirs, rounds, tokens, bar))
  return rows


def dense_twin(config: Config) -> Config:
  """The same model with a dense FFN of the activated width in every layer:
  shared and chosen experts side by side.
  """
  width = (config.moe.num_shared_experts + config.moe.experts_per_token) * config.moe.d_expert
  model = dataclasses.replace(config.model, num_dense_layers=config.model.num_layers, d_ff=width)
  return dataclasses.replace(config, model=model)


def train_step(config: Config) -> Callable[[], None]:
  """A function that runs one training step after another on `words`."""
  program, state, rest = _compiled(config)

  def run():
    nonlocal state
    state, metrics = program(state, *rest)
    jax.block_until_ready(metrics)

  return run


def profiles(config: Config, times: int) -> list[list[Row]]:
  """The time of a step by named scope, from so many traces."""
  program, state, rest = _compiled(config)
  traced = []
  for _ in range(times + 1):  # the first is a warm-up
    with tempfile.TemporaryDirectory() as folder:
      profile.start(Path(folder))
      state, metrics = program(state, *rest)
      jax.block_until_ready(metrics)
      traced.append(profile.stop(Path(folder), program.as_text(), 1))
  return traced[1:]


def _compiled(config):
  """(the step as `moe.train` compiles it for one device, its state, its other arguments)."""
  device = np.array(jax.devices()[:1])
  state, rest = jax.jit(lambda: init_state(config))(), (words(config), hyperparameters(config))
  step = jax.jit(make_train_step(config), donate_argnums=0)
  options = compiler_options(Mesh(device, ('device',)))
  return step.lower(state, *rest).compile(options), state, rest


def words(config: Config) -> Batch:
  """A batch of ids whose frequencies fall like those of words."""
  shape = config.data.batch_size, config.data.seq_len
  frequencies_V = 1 / np.arange(1, config.model.vocab_size + 1)
  generator = np.random.default_rng(0)
  ids_BL = generator.choice(
    config.model.vocab_size, (shape[0], shape[1] + 1), p=frequencies_V / frequencies_V.sum()
  )
  ids_BL = ids_BL.astype(np.int32)
  positions_BL = np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape)
  return Batch(
    ids_BL[:, :-1],
    ids_BL[:, 1:],
    positions_BL,
    np.ones(shape, np.int32),
    np.ones(shape, np.float32),
  )


def _beside_dense(dtype, rounds, bar):
  moe = _typed(from_config_dict(proxy.get_config('deepseek_moe')), dtype)
  sides = train_step(moe), train_step(dense_twin(moe))
  tokens = moe.data.batch_size * moe.data.seq_len
  return compare(f'train step, deepseek_moe ÷ dense, {dtype}', *sides, rounds, tokens, bar)


def _parts(config: Config) -> list[Part]:
  """Every part, forward and backward, with how often the step contains it."""
  model, moe, layers = config.model, config.moe, config.model.num_layers
  b, length, d, v = config.data.batch_size, config.data.seq_len, model.d_model, model.vocab_size
  h, c, tokens = model.num_heads, model.head_dim, b * length
  draw, segments_BL = moe_layer.Draw(model.dtype), jnp.ones((b, length), jnp.int32)
  heads = tuple(draw.tokens(b, length, h, c) for _ in range(3))
  width = moe.num_shared_experts * moe.d_expert
  shared = {'gate': draw(d, width), 'up': draw(d, width), 'down': draw(width, d)}
  mlp = MLP(config, width)
  targets_1T, weights_1T = jnp.zeros((1, tokens), jnp.int32), jnp.ones((1, tokens), jnp.float32)
  head = lambda x, w: cross_entropy(x[None], w, targets_1T, weights_1T, config.train.loss_chunk)[0]
  shape = moe_layer.Shape(d, moe.d_expert, moe.num_experts, moe.experts_per_token)
  run = moe_layer.with_gradients
  attend = lambda q, k, v: attention(q, k, v, segments_BL)
  shared_ffn = lambda x, p: mlp.apply({'params': p}, x)
  return [
    *moe_layer.parts(shape, tokens, model.dtype, layers),
    Part(
      'shared experts',
      run(shared_ffn, (draw.tokens(tokens, d), shared)),
      18 * tokens * d * width,
      layers,
    ),
    Part('attention', run(attend, heads), 12 * b * h * length**2 * c, layers),
    Part('head', run(head, (draw.tokens(tokens, d), draw(d, v))), 6 * tokens * d * v),
    Part('optimizer', _optimizer(config), 0),
  ]


def _optimizer(config):
  state, optimizer = (
    jax.jit(lambda: init_state(config))(),
    make_optimizer(config.optimizer, decayed(config), config.optimizer.weight_decay),
  )

  @jax.jit
  def update(params, optimizer_state):
    updates, optimizer_state = optimizer.update(params, optimizer_state, params)
    return jax.tree.map(lambda p, u: p - 1e-3 * u, params, updates), optimizer_state

  return lambda: jax.block_until_ready(update(state.params, state.optimizer_state))


@contextlib.contextmanager
def _through_ragged_dot() -> Iterator[None]:
  """Computes the routed FFN as it would be without an implementation for CPU:
  dispatch, `lax.ragged_dot`, combine.
  """
  with mock.patch.object(tiled, 'routed_ffn', grouped.routed_ffn):
    yield


def _typed(config, dtype):
  return dataclasses.replace(config, model=dataclasses.replace(config.model, dtype=dtype))
