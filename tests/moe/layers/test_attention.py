"""Attention, rotary positions and RMSNorm against loops."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.layers.attention import Attention, KVCache
from moe.layers.norm import RMSNorm
from moe.layers.rope import apply_rope
from tests import oracles
from tests.oracles import exact
from tests.small import assert_close, small_config

pytestmark = pytest.mark.usefixtures('quick_compile')

SEGMENTS_BL = np.array([[1, 1, 1, 2, 2, 2, 2, 0], [1, 2, 2, 3, 3, 3, 0, 0], [1] * 8], np.int32)
POSITIONS_BL = np.array([[0, 1, 2, 0, 1, 2, 3, 0], [0, 0, 1, 0, 1, 2, 0, 0], range(8)], np.int32)


def _normal(*shape, seed=0):
  return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def _params(model):
  kv = model.num_kv_heads * model.head_dim
  shapes = {'query': (16, 32), 'key': (16, kv), 'value': (16, kv), 'out': (32, 16)}
  return {name: _normal(*shape, seed=seed) / 3 for seed, (name, shape) in enumerate(shapes.items())}


@functools.partial(jax.jit, static_argnums=0)
def attend(config, params, x_BLD, positions_BL, segment_ids_BL, cache=None):
  return Attention(config).apply({'params': params}, x_BLD, positions_BL, segment_ids_BL, cache)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('kv_heads', [1, 2, 4])
def test_against_a_loop_over_pairs(kv_heads, dtype):
  config = small_config(
    **{'model.num_heads': 4, 'model.num_kv_heads': kv_heads, 'model.dtype': dtype}
  )
  params, x_BLD = _params(config.model), _normal(3, 8, 16)
  y_BLD, cache = attend(config, params, jnp.asarray(x_BLD, dtype), POSITIONS_BL, SEGMENTS_BL)
  assert cache is None
  assert y_BLD.dtype == dtype
  matrices = [exact(params[name]) for name in ('query', 'key', 'value', 'out')]
  truth = [
    oracles.attention(
      exact(x), p, s, *matrices, heads=4, kv_heads=kv_heads, base=config.model.rope_base
    )
    for x, p, s in zip(x_BLD, POSITIONS_BL, SEGMENTS_BL)
  ]
  real = SEGMENTS_BL > 0
  assert_close(y_BLD[real], np.array(truth)[real], 1e-5 if dtype == 'float32' else 2e-2)
  assert np.isfinite(y_BLD).all()  # padding too: a NaN would reach the loss as 0 · NaN


def test_a_cache_filled_in_pieces_gives_the_same():
  """A prompt comes first, right-padded to four, then one token at a time: these overwrite the
  padding's slots.
  """
  config = small_config(**{'model.num_heads': 4, 'model.num_kv_heads': 2})
  params, x_BLD = _params(config.model), _normal(1, 7, 16)
  whole_BLD, _ = attend(config, params, x_BLD, np.arange(7)[None], np.ones((1, 7), np.int32))
  cache = KVCache(*jnp.zeros((2, 1, 7, 2, 8)))
  padded_BLD = np.concatenate([x_BLD[:, :2], 100 * np.ones((1, 2, 16), np.float32)], axis=1)
  y_BLD, cache = attend(
    config, params, padded_BLD, np.arange(4)[None], np.ones((1, 4), np.int32), cache
  )
  assert_close(y_BLD[:, :2], whole_BLD[:, :2], 1e-5)
  for i in range(2, 7):
    y_BLD, cache = attend(
      config, params, x_BLD[:, i : i + 1], np.array([[i]]), np.ones((1, 1), np.int32), cache
    )
    assert_close(y_BLD[:, 0], whole_BLD[:, i], 1e-5, f'token {i}')


def test_rope():
  x_BLHC, positions_BL = _normal(2, 3, 2, 6), np.array([[0, 1, 500], [4095, 2, 2]], np.int32)
  turned = apply_rope(x_BLHC, positions_BL, 10_000.0)
  for b, t, h in np.ndindex(2, 3, 2):
    # Angles are float32, with errors up to 4095 · 2⁻²⁴ radians.
    assert_close(
      turned[b, t, h], oracles.rope(exact(x_BLHC[b, t, h]), positions_BL[b, t], 10_000.0), 3e-4
    )
  assert apply_rope(jnp.asarray(x_BLHC, jnp.bfloat16), positions_BL, 10_000.0).dtype == jnp.bfloat16


def test_rope_scores_depend_on_the_distance_only():
  query, key = _normal(1, 1, 1, 8, seed=1), _normal(1, 1, 1, 8, seed=2)
  turn = lambda x, position: apply_rope(x, np.array([[position]]), 10_000.0)
  score = lambda i, j: float((turn(query, i) * turn(key, j)).sum())
  assert score(7, 3) == pytest.approx(score(4, 0), abs=1e-4)
  assert score(1007, 1003) == pytest.approx(score(4, 0), abs=1e-3)
  assert abs(score(7, 3) - score(3, 7)) > 0.1  # the sign of the distance matters
  assert (turn(query, 0) == query).all()


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_rms_norm(dtype):
  x_BLD = jnp.asarray(_normal(2, 3, 16) * np.array([1e-4, 1, 100])[None, :, None], dtype)
  scale_D = _normal(16, seed=3)
  y_BLD = RMSNorm(small_config(**{'model.norm_eps': 1e-6})).apply(
    {'params': {'scale': scale_D}}, x_BLD
  )
  assert y_BLD.dtype == dtype
  for b, t in np.ndindex(2, 3):
    truth = oracles.rms_norm(exact(x_BLD[b, t]), exact(scale_D), 1e-6)
    assert_close(y_BLD[b, t], truth, 1e-6 if dtype == jnp.float32 else 2**-8)
