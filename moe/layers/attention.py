"""Causal self-attention with rotary positions, grouped key/value heads, segment ids,
and a cache for decoding.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from moe.config import Config
from moe.layers.linear import projection
from moe.layers.rope import apply_rope
from moe.ops.attention import attention
from moe.parallel import sharding
from moe.routers import Probe


class KVCache(NamedTuple):
  """Keys and values of S positions; the slot of a token is its position."""

  keys_BSGC: jax.Array
  values_BSGC: jax.Array


class CacheRows(NamedTuple):
  """Some rows of a larger cache. What is written to a row that it does not have is dropped."""

  whole: KVCache
  places_B: jax.Array  # int32: rows of `whole`


class SharedContext(NamedTuple):
  """Keys and values of S tokens that every segment of a row continues."""

  keys_BSGC: jax.Array
  values_BSGC: jax.Array
  is_token_BS: jax.Array  # bool; False for padding, which no token sees


class Attention(nn.Module):
  """Multi-head attention without biases; scores scaled by 1/√C, softmax in float32."""

  config: Config
  probe: Probe = Probe()

  @nn.compact
  def __call__(
    self,
    x_BLD: jax.Array,
    positions_BL: jax.Array,
    segment_ids_BL: jax.Array,
    cache: KVCache | CacheRows | SharedContext | None,
  ) -> tuple[jax.Array, KVCache | None]:
    """The layer's output, and the cache.

    Without a cache a token sees its own segment up to itself; with one, every cached position up to
    its own; with a shared context, that context and its own segment up to itself.

    Args:
      x_BLD: compute type.
      positions_BL: position in the document, for the rotary angles;
        with a cache also the slot to write.
      segment_ids_BL: documents of a row; ignored with a cache, whose rows hold one document each.
      cache: None, or what earlier calls returned. A slot is always written before it is
        seen, so right-padding a prompt is harmless: the tokens that really belong in padding's
        slots overwrite it. A shared context is not written to.

    The returned cache has all rows. Where none was passed it holds the tokens' own keys and values
    if the probe asks for them, else it is None; after a shared context it is None.
    """
    c = self.config.model
    query_BLHC = apply_rope(self._heads(x_BLD, 'query', c.num_heads), positions_BL, c.rope_base)
    keys_BLGC = apply_rope(self._heads(x_BLD, 'key', c.num_kv_heads), positions_BL, c.rope_base)
    values_BLGC = self._heads(x_BLD, 'value', c.num_kv_heads)

    if cache is None:
      heads, batch = sharding.spec('batch', None, 'heads', None), sharding.spec('batch', None)
      attend = sharding.per_shard(
        functools.partial(attention, implementation=self.config.ops.implementation),
        (heads, heads, heads, batch),
        heads,
      )
      attended_BLHC = attend(query_BLHC, keys_BLGC, values_BLGC, segment_ids_BL)
      cache = KVCache(keys_BLGC, values_BLGC) if self.probe.keys_values else None
    elif isinstance(cache, SharedContext):
      attended_BLHC = jax.nn.dot_product_attention(
        query_BLHC,
        jnp.concatenate([cache.keys_BSGC, keys_BLGC], axis=1),
        jnp.concatenate([cache.values_BSGC, values_BLGC], axis=1),
        mask=_seen_after(cache.is_token_BS, segment_ids_BL)[:, None],
      )
      cache = None
    else:
      has_others = isinstance(cache, CacheRows)
      rows = cache if has_others else CacheRows(cache, jnp.arange(len(x_BLD)))
      at = rows.places_B[:, None], positions_BL
      put = lambda kept, new_BLGC: kept.at[at].set(new_BLGC)
      cache = KVCache(*map(put, rows.whole, (keys_BLGC, values_BLGC)))
      keys_BSGC, values_BSGC = cache
      if has_others:
        # Gathered after the write, so that rows of many layers are never in memory at once.
        take = lambda kept: kept.at[rows.places_B].get(mode='clip')
        keys_BSGC, values_BSGC = map(take, cache)
      mask_BLS = jnp.arange(keys_BSGC.shape[1])[None, None, :] <= positions_BL[:, :, None]
      attended_BLHC = jax.nn.dot_product_attention(
        query_BLHC, keys_BSGC, values_BSGC, mask=mask_BLS[:, None]
      )
    attended_BLX = attended_BLHC.reshape(*x_BLD.shape[:2], c.num_heads * c.head_dim)
    return projection(self, attended_BLX, 'out', c.d_model, axes=('heads', 'width')), cache

  @classmethod
  def num_params(cls, config: Config) -> int:
    """Query, key, value and output matrices."""
    model = config.model
    return 2 * model.d_model * model.head_dim * (model.num_heads + model.num_kv_heads)

  def _heads(self, x_BLD, name, heads):
    width = self.config.model.head_dim
    x_BLX = projection(self, x_BLD, name, heads * width, axes=('width', 'heads'))
    return x_BLX.reshape(*x_BLD.shape[:2], heads, width)


def _seen_after(is_token_BS, segment_ids_BL):
  """bool (B, L, S + L): what each token sees of the shared context, and of its own row."""
  length = segment_ids_BL.shape[1]
  shared_BLS = jnp.broadcast_to(
    is_token_BS[:, None], (len(is_token_BS), length, is_token_BS.shape[1])
  )
  same_BLL = segment_ids_BL[:, :, None] == segment_ids_BL[:, None, :]
  own_BLL = same_BLL & jnp.tri(length, dtype=bool)[None]
  return jnp.concatenate([shared_BLS, own_BLL], axis=2)
