"""Tiny configs and data that the tests share."""

import contextlib
import functools
import os
import types
from collections.abc import Iterator
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from experiments import base
from moe.config import Config, from_config_dict
from moe.data.packing import Batch
from moe.model import init_params
from moe.train_step import TrainState, init_state

_SMALL = {
  'name': 'small',
  'model.vocab_size': 32,
  'model.num_layers': 2,
  'model.d_model': 16,
  'model.num_heads': 2,
  'model.num_kv_heads': 2,
  'model.head_dim': 8,
  'model.dtype': 'float32',
  'moe.num_experts': 6,
  'moe.experts_per_token': 2,
  'moe.num_shared_experts': 1,
  'moe.d_expert': 8,
  'data.seq_len': 12,
  'data.batch_size': 4,
  'train.num_steps': 100,
  'train.loss_chunk': 10,
  'optimizer.warmup_steps': 10,
}


def small_config(**overrides) -> Config:
  """A two-layer MoE of width 16 with 1 shared and 6 routed experts, 2 of them a token.
  Overrides are by dotted key: small_config(**{'moe.num_experts': 4}).
  """
  config = base.get_config()
  config.update_from_flattened_dict(_SMALL | overrides)
  return from_config_dict(config)


@contextlib.contextmanager
def one_device() -> Iterator[None]:
  """Code inside finds one device, as on most machines, not the suite's eight.

  For code that takes every device, such as `train` on a mesh with −1.
  """
  first = jax.devices()[0]
  with (
    mock.patch.object(jax, 'devices', lambda *backend: [first]),
    mock.patch.object(jax, 'device_count', lambda *backend: 1),
  ):
    yield


@contextlib.contextmanager
def compiled_anew() -> Iterator[None]:
  """Code inside takes no compiled program from other tests: for tests of compiling itself."""
  jax.config.update('jax_enable_compilation_cache', False)
  compilation_cache.reset_cache()
  try:
    yield
  finally:
    jax.config.update('jax_enable_compilation_cache', True)
    compilation_cache.reset_cache()


def plain_environment() -> dict[str, str]:
  """os.environ without conftest.py's settings, for interpreters with a compiler of their own."""
  return {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS' and not k.startswith('JAX_')}


@functools.cache
def small_params(config: Config, seed: int = 0, std: float = 0.3) -> dict:
  """Random parameters: matrices from N(0, std²), norm scales from N(1, 0.2²).
  NumPy draws them, since compiling init_params takes seconds.
  """
  generator = np.random.default_rng(seed)

  def draw(path, leaf):
    is_scale = path[-1].key == 'scale'
    return generator.normal(is_scale, 0.2 if is_scale else std, leaf.shape).astype(np.float32)

  return jax.tree_util.tree_map_with_path(
    draw, jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
  )


def small_state(config: Config) -> TrainState:
  """A state with `small_params`, before the first step. `init_state` takes seconds to compile,
  and three times as long outside jit.
  """
  shapes = jax.eval_shape(lambda: init_state(config))
  state = jax.tree.map(lambda x: jnp.array(np.zeros(x.shape, x.dtype)), shapes)
  return state.replace(params=jax.tree.map(jnp.array, small_params(config)))


def packed_batch(config: Config, seed: int = 0, padding_row: bool = False) -> Batch:
  """A batch whose rows hold two documents and some padding; row 0 is full.
  A few targets in the middle have weight 0, like padding.

  Rows alternate between two domains. `padding_row`: the last row is nothing but padding.
  """
  generator = np.random.default_rng(seed)
  batch, length = config.data.batch_size, config.data.seq_len
  segment_ids_BL = np.zeros((batch, length), np.int32)
  positions_BL = np.zeros((batch, length), np.int32)
  for row in range(batch - padding_row):
    end = length - row % length
    first = int(generator.integers(1, end)) if end > 1 else end
    segment_ids_BL[row, :first], segment_ids_BL[row, first:end] = 1, 2
    positions_BL[row, :end] = [*range(first), *range(end - first)]
  ids = lambda: generator.integers(0, config.model.vocab_size, (batch, length)).astype(np.int32)
  weights_BL = (segment_ids_BL > 0) & (generator.random((batch, length)) < 0.9)
  domains_BJ = np.eye(2, dtype=np.float32)[np.arange(batch) % 2]
  return Batch(
    *(ids(), ids(), positions_BL, segment_ids_BL, weights_BL.astype(np.float32), domains_BJ)
  )


class HeldOut:
  """Held-out documents by domain, lists of ids, as PreparedData has them."""

  def __init__(self, **texts):
    self._texts, self.held_out_domains = texts, tuple(texts)
    self.tokenizer = types.SimpleNamespace(bos_id=1, eos_id=2)

  def documents(self, split, domain):
    assert split == 'held_out'
    texts = self._texts[domain]

    class Documents:
      is_chat = False
      __len__ = lambda self: len(texts)
      document = staticmethod(lambda number: np.array(texts[number]))

    return Documents()


def assert_close(actual, truth, relative: float, name: str = '') -> None:
  """Asserts that every element is within `relative` times its array's largest magnitude."""

  def check(path, truth, actual):
    truth, actual = np.asarray(truth, np.float64), np.asarray(actual, np.float64)
    assert actual.shape == truth.shape, (name, path)
    error, scale = np.abs(actual - truth).max(initial=0), np.abs(truth).max(initial=0)
    where = f'{name}{jax.tree_util.keystr(path)}'
    assert error <= relative * scale + 1e-30, (
      f'{where}: off by {error:.3g} where the largest is {scale:.3g}'
    )

  jax.tree_util.tree_map_with_path(check, truth, actual)
