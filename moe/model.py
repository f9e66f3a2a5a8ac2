"""The language model: embed → N blocks (scanned, rematerialised) → final norm.
The loss applies the head.

B batch, L sequence, D model width, V vocabulary, N MoE layers.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from moe.config import Config, ModelConfig
from moe.layers.attention import KVCache, SharedContext
from moe.layers.block import Block, Presence, recomputed
from moe.layers.moe_layer import Aside
from moe.layers.norm import RMSNorm
from moe.losses.cross_entropy import HEAD_AXES
from moe.metrics import telemetry
from moe.metrics.routing import routing_telemetry
from moe.ops.dispatch_plan import SAVE_PLAN
from moe.ops.implementation import platform
from moe.ops.quantized import Quantized
from moe.ops.weights import product
from moe.parallel import mesh, sharding
from moe.parallel.feeding import batch_parts
from moe.routers import ROUTERS, Forced, Probe

# What a block keeps for backward besides its dispatch plan, by the value of model.remat;
# 'moe' acts inside the block.
_REMAT_POLICIES = {
  'full': SAVE_PLAN,
  'dots': jax.checkpoint_policies.save_from_both_policies(
    jax.checkpoint_policies.dots_with_no_batch_dims_saveable, SAVE_PLAN
  ),
}
_FEW_LAYERS = 4  # stacks of at most so many are unrolled where that is faster


class Transformer(nn.Module):
  """DeepSeekMoE and, by config, its dense and MoE baselines. Parameters are float32."""

  config: Config
  probe: Probe = Probe()

  def setup(self):
    model = self.config.model
    v, d = model.vocab_size, model.d_model
    self.embedding_VD = sharding.param(self, 'embedding', (v, d), axes=('vocab', 'width'))
    self.head_DV = sharding.param(self, 'head', (d, v), axes=HEAD_AXES)
    self.final_norm = RMSNorm(self.config)
    if model.num_dense_layers:
      self.dense_blocks = self._stack(dense=True, length=model.num_dense_layers)
    if length := model.num_moe_layers:
      self.moe_blocks = self._stack(dense=False, length=length)

  def __call__(
    self,
    tokens_BL: jax.Array,
    positions_BL: jax.Array,
    segment_ids_BL: jax.Array,
    cache: dict[str, KVCache | SharedContext] | None = None,
    forced: Forced | None = None,
  ) -> tuple[jax.Array, Aside, dict[str, KVCache] | None]:
    """The final hidden states, what the layers measured, and the cache.

    Args:
      tokens_BL: int32 ids in [0, V).
      positions_BL: int32, 0 at the start of each document.
      segment_ids_BL: int32, documents of a row numbered from 1; 0 is padding, which no document
        sees, and which is left out of the statistics.
      cache: None, or for every stack a `KVCache` with a leading axis of its layers, later what the
        last call returned, or `shared_context`; see `Attention`.
      forced: choices that replace the routers', with a leading axis N.

    Returns:
      hidden_BLD in the compute type; `logits` turns it into logits.
      The `Aside`, with the statistics and choices of the MoE layers, which have a leading axis N
      or are None where nothing is routed.
      The updated cache, or None; with `probe.keys_values` what `shared_context` takes.
    """
    x_BLD, asides, new_cache = self.embed(tokens_BL), [], {}
    hidden = [x_BLD[None]]
    for name in stack_names(self.config.model):
      x_BLD, aside, new_cache[name] = self.run_stack(
        *(name, x_BLD, tokens_BL, positions_BL, segment_ids_BL),
        cache=cache and cache[name],
        forced=forced if name == 'moe_blocks' else None,
      )
      asides.append(aside)
      hidden.append(aside.hidden_BLD)
    measured = telemetry.by_layer(*(aside.telemetry for aside in asides))
    aside = asides[-1]._replace(telemetry=measured)
    if self.probe.hidden:
      aside = aside._replace(hidden_BLD=jnp.concatenate(hidden))
    kept = cache or self.probe.keys_values
    return self.finish(x_BLD), aside, new_cache if kept else None

  def embed(self, tokens_BL: jax.Array) -> jax.Array:
    """The embedded tokens x_BLD, in the compute type."""
    with jax.named_scope('embed'):
      return _embed(self.config, self.embedding_VD, tokens_BL)

  def run_stack(
    self,
    name: str,
    x_BLD: jax.Array,
    tokens_BL: jax.Array,
    positions_BL: jax.Array,
    segment_ids_BL: jax.Array,
    cache: KVCache | SharedContext | None = None,
    presence_N: Presence | None = None,
    forced: Forced | None = None,
  ) -> tuple[jax.Array, Aside, KVCache | None]:
    """x_BLD after one of `stack_names`, what its layers measured, and its cache.
    presence_N, forced: see `Block`.
    """
    x_BLD, (aside, cache) = getattr(self, name)(
      x_BLD, cache, presence_N, tokens_BL, positions_BL, segment_ids_BL, forced
    )
    if aside.stats is not None:
      aside = aside._replace(telemetry=routing_telemetry(aside.stats) | aside.telemetry)
    return x_BLD, aside, cache

  def finish(self, x_BLD: jax.Array) -> jax.Array:
    """The final hidden_BLD, in the compute type."""
    return self.final_norm(x_BLD)

  def logits(self, hidden: jax.Array) -> jax.Array:
    """hidden (..., D) → float32 logits (..., V). For a few positions;
    training never holds all logits at once.
    """
    if not isinstance(self.head_DV, Quantized):
      return product(hidden, self.head_DV)
    between, implementation = (None,) * (hidden.ndim - 2), self.config.ops.implementation
    lies = sharding.specs(self.head_DV, sharding.stored(HEAD_AXES, self.head_DV.shape))
    of_rows = lambda axis: sharding.spec('batch', *between, axis)
    run = lambda hidden, head_DV: product(hidden, head_DV, implementation)
    return sharding.per_shard(run, (of_rows(None), lies), of_rows('vocab'))(hidden, self.head_DV)

  def _stack(self, dense, length):
    """`length` blocks as one scanned module, so that compile time does not grow with depth."""
    block, model = Block, self.config.model
    if model.remat in _REMAT_POLICIES:
      block = recomputed(Block, model, _REMAT_POLICIES[model.remat])
    scanned = nn.scan(
      block,
      variable_axes={'params': 0},
      split_rngs={'params': True},
      metadata_params=sharding.STACKED,
      in_axes=(0, 0, nn.broadcast, nn.broadcast, nn.broadcast, 0),
      length=length,
      unroll=_unroll(model, length),
    )
    return scanned(self.config, dense, self.probe)


def shared_context(kept: dict[str, KVCache], is_token_BS: jax.Array) -> dict[str, SharedContext]:
  """A cache of the keys and values of each row's only segment, which later rows' segments continue.

  kept: what a call with `probe.keys_values` returned. is_token_BS: False for padding.
  """

  def of_stack(cache):
    layers = len(cache.keys_BSGC)
    return SharedContext(*cache, jnp.broadcast_to(is_token_BS, (layers, *is_token_BS.shape)))

  return {name: of_stack(cache) for name, cache in kept.items()}


def init_params(config: Config, key: jax.Array) -> dict:
  """The parameter tree: float32, N(0, init_std²), norm scales one.
  Its shapes do not depend on batch or length.
  """
  return sharding.unboxed(init_declared(config, key))


def init_declared(config: Config, key: jax.Array) -> dict:
  """As `init_params`, with every parameter in a `sharding.Declared` box,
  which holds its declaration.
  """
  dummy = jnp.zeros((batch_parts(), 1), jnp.int32)
  return Transformer(config).init(key, dummy, dummy, dummy)['params']


def _embed(config: Config, embedding_VD: jax.Array, tokens_BL: jax.Array) -> jax.Array:
  """Rows of the embedding, in the compute type.

  On a mesh, rows travel instead of the table. A device looks up its own part of the vocabulary and
  columns, for the tokens of all devices that share the table with it. Then each device gathers all
  columns of its own tokens. The gradient takes the same way back.
  """
  split = mesh.zero_stage() == 3 and mesh.size('fsdp') * mesh.size('expert') > 1
  sharers = 'fsdp', 'expert'

  def on_shard(embedding_VD, tokens_BL):
    if split:
      tokens_BL = lax.all_gather(tokens_BL, sharers, tiled=True)
    if mesh.size('tensor') == 1:
      x_BLD = embedding_VD[tokens_BL].astype(config.model.dtype)
    else:
      row_BL = tokens_BL - lax.axis_index('tensor') * embedding_VD.shape[0]
      here_BL = (row_BL >= 0) & (row_BL < embedding_VD.shape[0])
      x_BLD = jnp.where(here_BL[:, :, None], embedding_VD[jnp.where(here_BL, row_BL, 0)], 0)
      x_BLD = lax.psum(x_BLD.astype(config.model.dtype), 'tensor')
    return (
      lax.all_to_all(x_BLD, sharers, split_axis=0, concat_axis=2, tiled=True) if split else x_BLD
    )

  table, batch = sharding.spec('vocab', 'width' if split else None), sharding.spec('batch')
  return sharding.per_shard(on_shard, (table, batch), batch)(embedding_VD, tokens_BL)


def _unroll(model: ModelConfig, length: int) -> int:
  """How many of a stack's layers one iteration of its scan computes."""
  if model.unroll:
    return min(model.unroll, length)
  # An iteration copies its layer's weights out of the stack, and what backward needs into it: 11%
  # of a step at d 48, 2% at d 128. Compiling three unrolled layers takes as long as a loop.
  is_short = length <= _FEW_LAYERS and model.remat == 'none'
  return length if is_short and platform() == 'cpu' and mesh.is_one_device() else 1


def stack_names(model: ModelConfig) -> list[str]:
  """The names of a model's stacks of equal blocks, in order."""
  dense = ['dense_blocks'] if model.num_dense_layers else []
  return dense + (['moe_blocks'] if model.num_moe_layers else [])


def after_step(config: Config, params: dict, measured: dict[str, jax.Array]) -> dict:
  """The parameters, with those of the routers updated by what a step's tokens chose;
  see `Router.after_step`.
  """
  layer = params['moe_blocks']['moe']
  if 'router' not in layer:
    return params
  router = ROUTERS[config.moe.router].after_step(layer['router'], measured, config)
  return params | {'moe_blocks': params['moe_blocks'] | {'moe': layer | {'router': router}}}
