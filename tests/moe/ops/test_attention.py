"""The attention op in plain XLA against float64 NumPy: values, gradients, sequences longer than a block of queries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.ops.attention import attention
from tests.moe.ops.modules import module
from tests.oracles import exact
from tests.small import assert_close

B, L, H, C = 2, 11, 4, 6
SEGMENTS_BL = np.array([[1, 1, 1, 1, 2, 2, 2, 2, 2, 0, 0], [1] * 11], np.int32)


def truth(query_BLHC, keys_BLGC, values_BLGC, d_BLHC):
  """attended_BLHC, and the gradients of Σ d · attended with respect to query, keys and values; a loop over pairs."""
  group = query_BLHC.shape[2] // keys_BLGC.shape[2]
  y, dq, dk, dv = (np.zeros_like(x) for x in (query_BLHC, query_BLHC, keys_BLGC, values_BLGC))
  for b, t, h in np.ndindex(*query_BLHC.shape[:3]):
    g = h // group
    seen = [s for s in range(t + 1) if SEGMENTS_BL[b, s] == SEGMENTS_BL[b, t]]
    scores = np.array([query_BLHC[b, t, h] @ keys_BLGC[b, s, g] / np.sqrt(C) for s in seen])
    weights = np.exp(scores) / np.exp(scores).sum()
    y[b, t, h] = sum(w * values_BLGC[b, s, g] for w, s in zip(weights, seen))
    d_weights = np.array([d_BLHC[b, t, h] @ values_BLGC[b, s, g] for s in seen])
    d_scores = weights * (d_weights - weights @ d_weights)
    for s, weight, d_score in zip(seen, weights, d_scores):
      dv[b, s, g] += weight * d_BLHC[b, t, h]
      dq[b, t, h] += d_score * keys_BLGC[b, s, g] / np.sqrt(C)
      dk[b, s, g] += d_score * query_BLHC[b, t, h] / np.sqrt(C)
  return y, dq, dk, dv


@pytest.mark.parametrize('queries', [512, 4])
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize('kv_heads', [1, 2, 4])
@pytest.mark.parametrize('implementation', ['reference', 'xla'])
def test_values_and_gradients(monkeypatch, implementation, kv_heads, dtype, queries):
  if implementation == 'xla':
    monkeypatch.setattr(module('attention', 'xla'), '_QUERIES', queries)
  generator = np.random.default_rng(0)
  draw = lambda heads: jnp.asarray(generator.normal(size=(B, L, heads, C)), dtype)
  arrays, d_BLHC = (draw(H), draw(kv_heads), draw(kv_heads)), draw(H)

  @jax.jit
  def run(arrays, d_BLHC):
    y, pull = jax.vjp(
      lambda q, k, v: attention(q, k, v, SEGMENTS_BL, implementation=implementation), *arrays
    )
    return y, *pull(d_BLHC)

  results = run(arrays, d_BLHC)
  assert all(r.dtype == dtype for r in results)
  true = truth(*(exact(x) for x in arrays), exact(d_BLHC))
  for name, computed, expected in zip(
    ('attended', 'd query', 'd keys', 'd values'), results, true, strict=True
  ):
    assert_close(computed, expected, 1e-5 if dtype == jnp.float32 else 2e-2, name)


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
