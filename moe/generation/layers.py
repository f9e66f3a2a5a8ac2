"""The model layer by layer, as decoding runs it: every layer with its own parameters and cache."""

import jax
import jax.numpy as jnp

from moe.config import ModelConfig
from moe.generation import weights
from moe.layers.attention import CacheRows, KVCache
from moe.layers.block import Block
from moe.model import Transformer, stack_names
from moe.parallel import sharding

Cache = dict[str, list[KVCache]]  # {stack: the cache of each layer}


def advance(
  model: Transformer,
  params: dict,
  tokens_BL: jax.Array,
  positions_BL: jax.Array,
  is_token_BL: jax.Array,
  cache: Cache,
  places_B: jax.Array | None = None,
) -> tuple[jax.Array, Cache]:
  """hidden_BLD after tokens at these positions, and the cache with them.

  params: from `weights.by_layer`.

  places_B: the row of the cache for each row of tokens, None if they are the same; a row that the
  cache does not have is dropped.
  """
  x_BLD, new_cache = _outside(model, params, tokens_BL, method='embed'), {}
  for name, caches in cache.items():
    block, new_cache[name] = Block(model.config, name == 'dense_blocks', model.probe), []
    for layer, kept in enumerate(caches):
      layer_params = weights.of_layer(params[name], layer)
      batch = None, tokens_BL, positions_BL, is_token_BL.astype(jnp.int32)
      rows = kept if places_B is None else CacheRows(kept, places_B)
      x_BLD, (_, kept) = block.apply({'params': layer_params}, x_BLD, rows, *batch)
      new_cache[name].append(_laid_out(kept))
  return _outside(model, params, x_BLD, method='finish'), new_cache


def logits(model: Transformer, params: dict, hidden_BD: jax.Array) -> jax.Array:
  """float32 logits_BV; params: stacked, or from `weights.by_layer`."""
  return _outside(model, params, hidden_BD, method='logits')


def _outside(model, params, *arguments, method):
  """Applies a method of the model that needs only the parameters outside its layers."""
  names = stack_names(model.config.model)
  whole = {name: w for name, w in params.items() if name not in names}
  return model.apply({'params': whole}, *arguments, method=method)


def empty_cache(model: ModelConfig, batch: int, positions: int) -> Cache:
  """An empty cache for `batch` rows of up to `positions` tokens."""

  def empty():
    shape = batch, positions, model.num_kv_heads, model.head_dim
    return _laid_out(KVCache(*(jnp.zeros(shape, model.dtype) for _ in KVCache._fields)))

  return {name: [empty() for _ in range(weights.depth(model, name))] for name in stack_names(model)}


def grown(cache: Cache, positions: int) -> Cache:
  """The cache with room for `positions` tokens a row."""

  def grow(x_BSGC):
    return jnp.pad(x_BSGC, ((0, 0), (0, positions - x_BSGC.shape[1]), (0, 0), (0, 0)))

  return _each(cache, lambda kept: KVCache(*map(grow, kept)))


def stacked(cache: Cache) -> dict[str, KVCache]:
  """The cache as `Transformer` takes it, stacked, since it scans over layers."""
  return {name: jax.tree.map(lambda *x: jnp.stack(x), *kept) for name, kept in cache.items()}


def put_rows(cache: Cache, rows_A: jax.Array, of: dict[str, KVCache]) -> Cache:
  """The cache with its rows `rows_A` replaced by those of another, `stacked` one; a row that it
  does not have is dropped.
  """

  def put(x_BSGC, y_ASGC):
    at = x_BSGC.at[rows_A, : y_ASGC.shape[1]]
    return at.set(y_ASGC, mode='drop', unique_indices=True)

  return {
    name: [
      _laid_out(jax.tree.map(lambda x, y, layer=layer: put(x, y[layer]), kept, of[name]))
      for layer, kept in enumerate(caches)
    ]
    for name, caches in cache.items()
  }


def _each(cache, change):
  return {name: [_laid_out(change(kept)) for kept in caches] for name, caches in cache.items()}


def _laid_out(kept):
  """Shards a cache the same way after every program, so that none is compiled twice."""
  return KVCache(*(sharding.constrain(x, 'batch', None, 'heads', None) for x in kept))
