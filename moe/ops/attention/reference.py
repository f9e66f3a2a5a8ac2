"""attention through jax.nn, with the mask written out."""

import jax
import jax.numpy as jnp


def attention(
  query_BLHC: jax.Array, keys_BLGC: jax.Array, values_BLGC: jax.Array, segment_ids_BL: jax.Array
) -> jax.Array:
  length = query_BLHC.shape[1]
  causal_1LL = jnp.tril(jnp.ones((1, length, length), bool))
  mask_BLL = (segment_ids_BL[:, :, None] == segment_ids_BL[:, None, :]) & causal_1LL
  return jax.nn.dot_product_attention(query_BLHC, keys_BLGC, values_BLGC, mask=mask_BLL[:, None])
