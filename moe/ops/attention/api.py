"""attention: softmax(q kᵀ / √C) v, causal, each token seeing its own document."""

import jax

from moe.ops.attention import reference, xla
from moe.ops.implementation import run


def _pallas_tpu(*arguments):
  from moe.ops.attention import pallas_tpu

  return pallas_tpu.attention(*arguments)


def _pallas_gpu(*arguments):
  from moe.ops.attention import pallas_gpu

  return pallas_gpu.attention(*arguments)


# Pallas is imported where its kernels run.
IMPLEMENTATIONS = {
  'reference': reference.attention,
  'xla': xla.attention,
  'pallas_tpu': _pallas_tpu,
  'pallas_gpu': _pallas_gpu,
}


def attention(
  query_BLHC: jax.Array,
  keys_BLGC: jax.Array,
  values_BLGC: jax.Array,
  segment_ids_BL: jax.Array,
  *,
  implementation: str = 'auto',
) -> jax.Array:
  """attended_BLHC in the query's type; softmax in float32. Differentiable in query,
  keys and values.

  Args:
    query_BLHC, keys_BLGC, values_BLGC: one type, bfloat16 or float32. Head h reads
      key/value head h // (H / G).
    segment_ids_BL: int32. A token sees the tokens of its own segment up to itself.
  """
  return run(
    'attention', IMPLEMENTATIONS, implementation, query_BLHC, keys_BLGC, values_BLGC, segment_ids_BL
  )
