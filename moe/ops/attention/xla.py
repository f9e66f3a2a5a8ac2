"""attention in plain XLA, in products that reach the fast units of a CPU, forward and backward.

Up to 512 tokens all scores exist at once and the probabilities are kept for backward. Longer
sequences take 512 queries at a time and compute their probabilities again in backward, so that
memory grows with L and not with L².

B sequences, L tokens, Q queries at a time, H heads, G key/value heads, P = H / G, C head width,
Z = B·G, I = P·Q rows.
"""

import jax
import jax.numpy as jnp
from jax import lax

from moe.ops.matmul import batched, batched_nt, batched_tn

_QUERIES = 512
_HIDDEN = -1e30  # score of a hidden pair; finite, so that no gradient is ∞ − ∞


def attention(
  query_BLHC: jax.Array, keys_BLGC: jax.Array, values_BLGC: jax.Array, segment_ids_BL: jax.Array
) -> jax.Array:
  b, length, h, c = query_BLHC.shape
  if query_BLHC.size == 0:
    return query_BLHC
  g, dtype = keys_BLGC.shape[2], query_BLHC.dtype
  # float32, an exact cast, so that the gradients of several blocks of queries are summed in it.
  flat = lambda x_BLGC: x_BLGC.astype(jnp.float32).swapaxes(1, 2).reshape(b * g, length, c)
  keys_ZLC, values_ZLC = flat(keys_BLGC), flat(values_BLGC)
  position_L = jnp.arange(length)

  def block(queries):
    """Attention of Q tokens: their queries_BQHC, segments_BQ and positions_Q."""
    query_BQHC, segments_BQ, position_Q = queries
    size = position_Q.shape[0]
    # I = P·Q: rows of the heads that share keys.
    query_ZIC = query_BQHC.swapaxes(1, 2).reshape(b * g, h // g * size, c)
    sees_BQL = segments_BQ[:, :, None] == segment_ids_BL[:, None, :]
    sees_BQL &= (position_Q[:, None] >= position_L[None, :])[None]
    attended_ZIC = _attend(query_ZIC, keys_ZLC, values_ZLC, sees_BQL)
    return attended_ZIC.reshape(b, h, size, c).swapaxes(1, 2)

  if length <= _QUERIES:
    return block((query_BLHC, segment_ids_BL, position_L)).astype(dtype)
  blocks = -(-length // _QUERIES)
  # Padded queries see what is before them and are cut off again.
  padded = lambda x, axis: jnp.pad(
    x, [(0, (blocks * _QUERIES - length) * (a == axis)) for a in range(x.ndim)]
  )
  split = lambda x: padded(x, 1).reshape(b, blocks, _QUERIES, *x.shape[2:]).swapaxes(0, 1)
  positions = jnp.arange(blocks * _QUERIES).reshape(blocks, _QUERIES)
  attended = lax.map(jax.checkpoint(block), (split(query_BLHC), split(segment_ids_BL), positions))
  return attended.swapaxes(0, 1).reshape(b, -1, h, c)[:, :length].astype(dtype)


@jax.custom_vjp
def _attend(
  query_ZIC: jax.Array, keys_ZLC: jax.Array, values_ZLC: jax.Array, sees_BQL: jax.Array
) -> jax.Array:
  """attended_ZIC in the query's type, in which all products are computed.
  Keys, values and their gradients are float32.
  """
  return _forward(query_ZIC, keys_ZLC, values_ZLC, sees_BQL)[0]


def _forward(query_ZIC, keys_ZLC, values_ZLC, sees_BQL):
  dtype = query_ZIC.dtype
  scores_ZIL = batched_nt(query_ZIC, keys_ZLC.astype(dtype)) * query_ZIC.shape[-1] ** -0.5
  scores_ZIL = _hide_unseen(sees_BQL, scores_ZIL)
  weights_ZIL = jnp.exp(scores_ZIL - scores_ZIL.max(axis=-1, keepdims=True))
  # A token that sees nothing, as a padded query may, gets equal weights rather than NaN.
  probabilities_ZIL = (weights_ZIL / weights_ZIL.sum(axis=-1, keepdims=True)).astype(dtype)
  attended_ZIC = batched(probabilities_ZIL, values_ZLC.astype(dtype)).astype(dtype)
  return attended_ZIC, (query_ZIC, keys_ZLC, values_ZLC, probabilities_ZIL, attended_ZIC)


def _backward(residuals, d_attended_ZIC):
  query_ZIC, keys_ZLC, values_ZLC, probabilities_ZIL, attended_ZIC = residuals
  dtype = query_ZIC.dtype
  d_values_ZLC = batched_tn(probabilities_ZIL, d_attended_ZIC)
  d_probabilities_ZIL = batched_nt(d_attended_ZIC, values_ZLC.astype(dtype))
  # Σ_l p dp of a row is attended · d_attended: C terms instead of L.
  inner_ZI1 = (attended_ZIC.astype(jnp.float32) * d_attended_ZIC.astype(jnp.float32)).sum(
    axis=-1, keepdims=True
  )
  d_scores_ZIL = probabilities_ZIL.astype(jnp.float32) * (d_probabilities_ZIL - inner_ZI1)
  d_scores_ZIL = (d_scores_ZIL * query_ZIC.shape[-1] ** -0.5).astype(dtype)
  d_query_ZIC = batched(d_scores_ZIL, keys_ZLC.astype(dtype)).astype(dtype)
  return d_query_ZIC, batched_tn(d_scores_ZIL, query_ZIC), d_values_ZLC, None


_attend.defvjp(_forward, _backward)


def _hide_unseen(sees_BQL, scores_ZIL):
  """Scores, with _HIDDEN where their sequence's mask hides them; G·P heads share this mask."""
  b, queries, length = sees_BQL.shape
  scores_BHQL = scores_ZIL.reshape(b, -1, queries, length)
  return jnp.where(sees_BQL[:, None], scores_BHQL, _HIDDEN).reshape(scores_ZIL.shape)
