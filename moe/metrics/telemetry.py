"""Telemetry: what a layer measures beside its result. Each value says how to reduce it.

A layer returns {name: Reading}. A stack of layers adds a leading axis N. Microbatches, pipeline
stages and devices combine every reading as its `reduce` says, whatever its name. A step's metrics
have it as NAME_N, unless the name begins with an underscore: that is for `Router.after_step` alone.

  {'residual_rms': Reading(rms, 'mean')}
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax


@struct.dataclass
class Reading:
  """A value over all sequences of a microbatch, and how to combine those of several microbatches.

  'sum': they add up. 'max': the largest counts. 'mean': weighted by each microbatch's real tokens.
  """

  value: jax.Array
  reduce: Literal['sum', 'max', 'mean'] = struct.field(pytree_node=False)


Telemetry = dict[str, Reading]


def weighted(telemetry: Any, share: jax.Array) -> Any:
  """The readings of a microbatch that has this share of the batch's tokens, ready for `combine`:
  means are scaled by the share, so that they add up.
  """
  return _map(
    lambda r: r.replace(value=r.value * share if r.reduce == 'mean' else r.value), telemetry
  )


def combine(a: Any, b: Any) -> Any:
  """Readings of two microbatches as one."""
  return _map(
    lambda x, y: x.replace(
      value=jnp.maximum(x.value, y.value) if x.reduce == 'max' else x.value + y.value
    ),
    a,
    b,
  )


def nothing(shapes: Any) -> Any:
  """Neutral readings of these shapes: to combine them with others changes nothing."""
  return _map(lambda r: r.replace(value=_neutral(r)), shapes)


def over_axis(telemetry: Any, axis: str) -> Any:
  """Readings combined over a mesh axis, inside `shard_map`."""
  return _map(
    lambda r: r.replace(value=(lax.pmax if r.reduce == 'max' else lax.psum)(r.value, axis)),
    telemetry,
  )


def by_layer(*stacks: Telemetry) -> Telemetry:
  """Joins the readings of consecutive stacks of layers.
  Each reading gets one row for every layer that has it.
  """
  joined: Telemetry = {}
  for name, reading in ((name, r) for stack in stacks for name, r in stack.items()):
    if name in joined:
      reading = reading.replace(value=jnp.concatenate([joined[name].value, reading.value]))
    joined[name] = reading
  return joined


def values(telemetry: Mapping[str, Reading]) -> dict[str, jax.Array]:
  """Metrics: NAME_N for every reading."""
  return {f'{name}_N': reading.value for name, reading in telemetry.items()}


def shown(metrics: Mapping[str, Any]) -> dict[str, Any]:
  """Metrics, or readings, without what was measured for `Router.after_step` alone."""
  return {name: value for name, value in metrics.items() if not name.startswith('_')}


def _neutral(reading):
  shape, dtype = reading.value.shape, reading.value.dtype
  if reading.reduce != 'max':
    return jnp.zeros(shape, dtype)
  limits = jnp.iinfo if jnp.issubdtype(dtype, jnp.integer) else jnp.finfo
  return jnp.full(shape, limits(dtype).min, dtype)


def _map(function: Callable, *trees):
  return jax.tree.map(function, *trees, is_leaf=lambda x: isinstance(x, Reading))
