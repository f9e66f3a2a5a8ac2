"""The product with a weight that the mesh splits: ZeRO-3 gathers it, tensor parallelism computes and sums its parts."""

import jax
import jax.numpy as jnp
from jax import lax

from moe.config import Config
from moe.ops import matmul
from moe.parallel import mesh

_TENSOR_AXES = ('heads', 'hidden')


def linear(x_BLK: jax.Array, w_KN: jax.Array, axes: tuple[str, str], config: Config) -> jax.Array:
  """x w in the compute type, as `ops.matmul.linear`.

  Written out for each device, since XLA, left to itself, sums gradients over all devices and then throws most of the
  sum away: half of its traffic.

  Args:
    x_BLK: laid out by batch and, where w's rows are split by tensor, by K.
    axes: logical axes of w, which say how it is stored; `mesh.parameter_axes`.

  Returns:
    y_BLN, laid out by batch and, where w's columns are split by tensor, by N.
  """
  dtype = jnp.dtype(config.model.dtype)
  rows, columns = axes
  by_tensor = lambda axis: axis if axis in _TENSOR_AXES else None

  def of_own_part(x_BLK, w_KN):
    y_BLN = matmul.linear(x_BLK, mesh.own_whole(w_KN, axes, dtype), dtype)
    return lax.psum(y_BLN, 'tensor') if by_tensor(rows) and mesh.size('tensor') > 1 else y_BLN

  # With 'full' backward gathers again anyway.
  if mesh.gathers(axes) and config.model.remat != 'full':
    of_own_part = jax.checkpoint(of_own_part)
  laid_out = lambda axis: mesh.spec('batch', None, by_tensor(axis))
  specs = laid_out(rows), mesh.stored_spec(axes)
  return mesh.on_shards(of_own_part, specs, laid_out(columns))(x_BLK, w_KN)
