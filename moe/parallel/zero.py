"""ZeRO: parameters spread over the devices that share a batch, gathered where they are used."""

from collections.abc import Callable
from typing import Any

import jax

from moe.parallel.mesh import size
from moe.parallel.sharding import Stored


def gathers(stored: Stored) -> list[tuple[int, str]]:
  """(dimension, mesh axis) of every gather that it takes to make a parameter whole,
  as ZeRO-3 spreads it over the mesh in use.

  One gather per mesh axis, the minor axis first: TPU's compiler turns a single gather over a whole
  3D torus into an all-reduce, of twice the bytes.
  """
  return [
    (dimension, name)
    for dimension, (axis, by) in enumerate(zip(stored.axes, stored.split, strict=True))
    for name in reversed(by)
    if axis == 'width' and size(name) > 1
  ]


def gathered(w: jax.Array, stored: Stored, dtype: Any) -> jax.Array:
  """Inside `per_shard`: a parameter, whole along the axes over which ZeRO-3 spreads it.

  dtype: the type it is used in, see `in_compute_type`.
  """
  steps = gathers(stored)

  def gather(w):
    for dimension, name in steps:
      w = jax.lax.all_gather(w, name, axis=dimension, tiled=True)
    return w

  return in_compute_type(gather, w, dtype) if steps else w


def in_compute_type(move: Callable, w: jax.Array, dtype: Any) -> jax.Array:
  """move(w), for a linear function of collectives and a parameter that is used in `dtype`,
  which may be narrower.

  The parameter crosses the network rounded, as products would round it anyway. Its gradient takes
  the transposed way in w's own type: gathers become reduce-scatters. So the gradients of many
  devices are summed without that rounding, and the sum ends where w is stored.
  """
  stored = jax.ShapeDtypeStruct(w.shape, w.dtype)

  @jax.custom_vjp
  def moved(w):
    return move(w.astype(dtype)).astype(stored.dtype)

  moved.defvjp(lambda w: (moved(w), None), lambda _, d: jax.linear_transpose(move, stored)(d))
  return moved(w)
