"""attention through JAX's own splash attention kernels (causal, segments, shared
key/value heads, float32 softmax).

L is padded to a multiple of the kernel's blocks and C to one of 128. Pallas'
interpreter runs it as well.
"""

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from moe.ops.implementation import interpret
from moe.ops.kernels import Kernel

# JAX's own kernels, by its names. Both backward kernels compute the scores again, and the gradients
# of the scores are computed once more, too.
KERNELS = (
  Kernel('splash_mha_fwd', products=2, suffixed=True),
  Kernel('splash_mha_dq', backward=True, products=3, again=2, suffixed=True),
  Kernel('splash_mha_dkv', backward=True, products=4, again=1, suffixed=True),
)
_LANES, _BLOCK = 128, 512


def attention(
  query_BLHC: jax.Array, keys_BLGC: jax.Array, values_BLGC: jax.Array, segment_ids_BL: jax.Array
) -> jax.Array:
  _, length, num_heads, width = query_BLHC.shape
  if query_BLHC.size == 0:
    return jnp.zeros_like(query_BLHC)
  block = min(_BLOCK, _round_up(length, _LANES))
  padded, padded_width = _round_up(length, block), _round_up(width, _LANES)
  pad = lambda x, size, axis: jnp.pad(
    x, [(0, size - x.shape[axis]) if a == axis else (0, 0) for a in range(x.ndim)]
  )
  # Padding is a segment of its own; being last, no token sees it. Zero columns change no product.
  heads = lambda x: pad(pad(x, padded, 1), padded_width, 3).swapaxes(1, 2)
  segments_BL = pad(segment_ids_BL + 1, padded, 1)
  kernel = splash.make_splash_mha(
    masks.MultiHeadMask([masks.CausalMask((padded, padded))] * num_heads),
    head_shards=1,
    q_seq_shards=1,
    block_sizes=_block_sizes(block),
    interpret=bool(interpret()),  # the TPU interpreter cannot run the kernel under vmap
  )
  query = heads((query_BLHC * width**-0.5).astype(query_BLHC.dtype))
  attended_BHLC = jax.vmap(lambda q, k, v, s: kernel(q, k, v, segment_ids=splash.SegmentIds(s, s)))(
    query, heads(keys_BLGC), heads(values_BLGC), segments_BL
  )
  return attended_BHLC.swapaxes(1, 2)[:, :length, :, :width].astype(query_BLHC.dtype)


def _round_up(x, multiple):
  return -(-x // multiple) * multiple


def _block_sizes(block):
  names = ('q', 'kv', 'kv_compute', 'q_dkv', 'kv_dkv', 'kv_dkv_compute', 'q_dq', 'kv_dq')
  return splash.BlockSizes(**{f'block_{name}': block for name in names})
