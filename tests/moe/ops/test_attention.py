"""Every implementation of attention against float64 NumPy: values, gradients, and lengths beyond
a block of queries.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.ops.attention import attention, xla
from moe.ops.implementation import Unsupported
from tests.moe.ops.backends import DTYPES, over
from tests.oracles import exact
from tests.small import assert_close

SEGMENTS_BL = np.array([[1, 1, 1, 1, 2, 2, 2, 2, 2, 0, 0], [1] * 11], np.int32)


def truth(query_BLHC, keys_BLGC, values_BLGC, d_BLHC, segments_BL):
  """attended_BLHC, and the gradients of Σ d · attended with respect to query, keys and values,
  by a loop over pairs.
  """
  group, scale = query_BLHC.shape[2] // keys_BLGC.shape[2], query_BLHC.shape[3] ** -0.5
  y, dq, dk, dv = (np.zeros_like(x) for x in (query_BLHC, query_BLHC, keys_BLGC, values_BLGC))
  for b, t, h in np.ndindex(*query_BLHC.shape[:3]):
    g = h // group
    seen = np.flatnonzero(segments_BL[b, : t + 1] == segments_BL[b, t])
    scores = np.array([query_BLHC[b, t, h] @ keys_BLGC[b, s, g] * scale for s in seen])
    weights = np.exp(scores) / np.exp(scores).sum()
    y[b, t, h] = sum(w * values_BLGC[b, s, g] for w, s in zip(weights, seen))
    d_weights = np.array([d_BLHC[b, t, h] @ values_BLGC[b, s, g] for s in seen])
    d_scores = weights * (d_weights - weights @ d_weights)
    for s, weight, d_score in zip(seen, weights, d_scores):
      dv[b, s, g] += weight * d_BLHC[b, t, h]
      dq[b, t, h] += d_score * keys_BLGC[b, s, g] * scale
      dk[b, s, g] += d_score * query_BLHC[b, t, h] * scale
  return y, dq, dk, dv


# ((L, G, C), dtype, queries at a time), with four query heads.
CASES = [
  ((11, kv_heads, 6), dtype, queries)
  for kv_heads in (1, 2, 4)
  for dtype in DTYPES
  for queries in (512, 4)
]
ROWS = {
  # Only XLA reads the number of queries at a time.
  'reference': [case for case in CASES if case[2] == 512],
  'xla': CASES,
  # A length that fills no block; an L and a C that are no multiples of 128.
  'pallas_gpu': [((70, 2, 8), jnp.bfloat16, 512)],
  'pallas_tpu': [((9, 2, 24), jnp.float32, 512)],
}


def _arrays(length, kv_heads, width, dtype):
  """(query, keys, values), d_attended, segments of two sequences."""
  generator = np.random.default_rng(0)
  draw = lambda heads: jnp.asarray(generator.normal(size=(2, length, heads, width)), dtype)
  segments_BL = np.repeat(SEGMENTS_BL, -(-length // 11), axis=1)[:, :length]
  return (draw(4), draw(kv_heads), draw(kv_heads)), draw(4), segments_BL


@functools.partial(jax.jit, static_argnames=('implementation', 'queries'))
def run(arrays, d_BLHC, segments_BL, implementation, queries):
  """attended_BLHC and the gradients. `queries` is here only to be part of jit's cache key: the
  module reads its own constant.
  """
  y, pull = jax.vjp(lambda *x: attention(*x, segments_BL, implementation=implementation), *arrays)
  return y, *pull(d_BLHC)


@over('shape, dtype, queries', ROWS)
def test_values_and_gradients(monkeypatch, implementation, shape, dtype, queries):
  monkeypatch.setattr(xla, '_QUERIES', queries)
  arrays, d_BLHC, segments_BL = _arrays(*shape, dtype)
  results = run(arrays, d_BLHC, segments_BL, implementation, queries)
  assert all(r.dtype == dtype for r in results)
  true = truth(*(exact(x) for x in arrays), exact(d_BLHC), segments_BL)
  for name, computed, expected in zip(
    ('attended', 'd query', 'd keys', 'd values'), results, true, strict=True
  ):
    assert_close(computed, expected, 1e-5 if dtype == jnp.float32 else 2e-2, name)


@pytest.mark.parametrize('implementation', ['pallas_gpu'], indirect=True)
def test_triton_refuses_float32_and_auto_takes_xla(implementation):
  arrays, d_BLHC, segments_BL = _arrays(11, 2, 8, jnp.float32)
  with pytest.raises(Unsupported, match='would round float32 to TF32'):
    run(arrays, d_BLHC, segments_BL, implementation, 512)
  assert_close(
    run(arrays, d_BLHC, segments_BL, 'auto', 512),
    run(arrays, d_BLHC, segments_BL, 'reference', 512),
    1e-6,
  )


def test_scores_are_never_all_alive_for_long_sequences():
  """1,024 tokens: the largest array has 512 × 1,024 scores a head, forward and backward."""
  shapes = jax.ShapeDtypeStruct((1, 1024, 2, 8), jnp.float32)
  total = lambda q: attention(q, q, q, jnp.ones((1, 1024), jnp.int32), implementation='xla').sum()
  compiled = jax.jit(jax.grad(total)).lower(shapes).compile().as_text()
  assert '[2,1024,1024]' not in compiled
  assert '[2,512,1024]' in compiled


def test_no_token():
  empty = jnp.zeros((0, 5, 2, 4))
  assert (
    attention(empty, empty, empty, jnp.zeros((0, 5), jnp.int32), implementation='xla').shape
    == empty.shape
  )
