"""attention: softmax(q kᵀ / √C) v, causal, each token seeing its own document."""

import jax

from moe.ops.implementation import module


def attention(
  query_BLHC: jax.Array,
  keys_BLGC: jax.Array,
  values_BLGC: jax.Array,
  segment_ids_BL: jax.Array,
  *,
  implementation: str = 'auto',
) -> jax.Array:
  """attended_BLHC in the query's type; softmax in float32. Differentiable in query, keys and values.

  Args:
    query_BLHC, keys_BLGC, values_BLGC: one type, bfloat16 or float32. Head h reads key/value head h // (H / G).
    segment_ids_BL: int32. A token sees the tokens of its own segment up to itself.
  """
  chosen = module('attention', implementation)
  return chosen.attention(query_BLHC, keys_BLGC, values_BLGC, segment_ids_BL)
