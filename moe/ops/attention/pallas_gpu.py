"""attention through the Triton kernels that JAX ships (causal, segments, float32
softmax, forward and backward).

bfloat16 only: they would round float32 operands to TF32, so float32 raises Unsupported,
and `auto` takes XLA.
L is padded to a multiple of the kernels' blocks and C to at least 16, the least that Triton's
products take; key/value heads that several query heads read are repeated.

cuDNN (`jax.nn.dot_product_attention(implementation='cudnn')`) is not used. When traced it asks the
GPU at hand for its version, which rules out compiling for a GPU elsewhere. It wants the segments'
(L, L) mask written out as a bias, and it takes no odd L.
"""

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.gpu import attention as triton

from moe.ops.implementation import Unsupported, interpret
from moe.ops.kernels import Kernel

# JAX's own kernels, by its names. Backward computes the scores and their gradients again.
KERNELS = (
  Kernel('mha_forward', products=2),
  Kernel('mha_preprocess_backward', backward=True),
  Kernel('mha_backward', backward=True, products=7, again=3),
)
# Small blocks backward: its four accumulators of block × C float32 have to stay in registers.
_FORWARD, _BACKWARD = 64, 32


def attention(
  query_BLHC: jax.Array, keys_BLGC: jax.Array, values_BLGC: jax.Array, segment_ids_BL: jax.Array
) -> jax.Array:
  if query_BLHC.size == 0:
    return jnp.zeros_like(query_BLHC)
  if query_BLHC.dtype == jnp.float32:
    raise Unsupported(
      "attention's Triton kernels would round float32 to TF32: "
      'use ops.implementation=auto, xla or reference, or model.dtype=bfloat16'
    )
  length, num_heads, width = query_BLHC.shape[1:]
  longer = -length % _FORWARD
  heads = lambda x: jnp.pad(
    jnp.repeat(x, num_heads // x.shape[2], axis=2),
    ((0, 0), (0, longer), (0, 0), (0, max(0, 16 - width))),
  )
  attended_BLHC = triton.mha(
    heads(query_BLHC),
    heads(keys_BLGC),
    heads(values_BLGC),
    # Padding may share a segment with tokens: it comes last, so no token sees it.
    jnp.pad(segment_ids_BL, ((0, 0), (0, longer))),
    width**-0.5,
    True,
    triton.BlockSizes(_FORWARD, _FORWARD, _BACKWARD, _BACKWARD, _BACKWARD, _BACKWARD),
    interpret=interpret(),
  )
  return attended_BLHC[:, :length, :, :width]
