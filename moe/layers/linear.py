"""The product with a weight that the mesh splits:
ZeRO-3 gathers it, tensor parallelism computes and sums its parts.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from moe.config import Config
from moe.layers import tuned
from moe.ops import weights
from moe.ops.quantized import Matrix
from moe.parallel import mesh, sharding, zero

_TENSOR_AXES = ('heads', 'hidden')


def projection(
  module: nn.Module, x_BLX: jax.Array, name: str, columns: int, axes: tuple[str, str]
) -> jax.Array:
  """x w with a matrix of the module's own, declared here by its name and logical axes;
  see `linear`.
  """
  w_XY = sharding.param(module, name, (x_BLX.shape[-1], columns), axes)
  w_XY = tuned.adapted(module, name, w_XY)
  return linear(x_BLX, w_XY, axes, module.config)


def linear(x_BLX: jax.Array, w_XY: Matrix, axes: tuple[str, str], config: Config) -> jax.Array:
  """x w in the compute type, as `ops.weights.linear`.

  Written per device: left to itself, XLA sums gradients over all devices and then discards most of
  the sum, which is half of its traffic.

  Args:
    x_BLX: laid out by batch and, where w's rows are split by tensor, by X.
    axes: logical axes of w, as it was declared.

  Returns:
    y_BLY, laid out by batch and, where w's columns are split by tensor, by Y.
  """
  dtype = jnp.dtype(config.model.dtype)
  rows, columns = axes
  stored = sharding.stored(axes, w_XY.shape)
  by_tensor = lambda axis: axis if axis in _TENSOR_AXES else None

  def on_shard(x_BLX, w_XY):
    whole = zero.gathered(w_XY, stored, dtype)
    y_BLY = weights.linear(x_BLX, whole, dtype, config.ops.implementation)
    return lax.psum(y_BLY, 'tensor') if by_tensor(rows) and mesh.size('tensor') > 1 else y_BLY

  # With remat 'full' backward gathers again anyway.
  if zero.gathers(stored) and config.model.remat != 'full':
    on_shard = jax.checkpoint(on_shard)
  laid_out = lambda axis: sharding.spec('batch', None, by_tensor(axis))
  specs = laid_out(rows), sharding.specs(w_XY, stored)
  return sharding.per_shard(on_shard, specs, laid_out(columns))(x_BLX, w_XY)
