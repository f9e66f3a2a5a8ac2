"""Telemetry: what a layer measures beside its result, each value with how to reduce it.

A layer returns {name: Reading}. A stack of layers adds a leading axis N; microbatches, pipeline
stages and devices reduce every reading by its own word, and a step's metrics have it as NAME_N.
None of them knows a name; but one that begins with an underscore is for `Router.after_step` alone,
and no metric of the step.

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
  """A value over all sequences of a microbatch, and how several microbatches' become the batch's.

  'sum': they add up. 'max': the largest counts. 'mean': weighted by each microbatch's real tokens.
  """

  value: jax.Array
  reduce: Literal['sum', 'max', 'mean'] = struct.field(pytree_node=False)


Telemetry = dict[str, Reading]


def weighted(telemetry: Any, share: jax.Array) -> Any:
  """Readings of a microbatch with this share of the batch's tokens, ready for `combine`:
  means become summands.
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
  """Readings of these shapes that change nothing they are combined with."""
  return _map(lambda r: r.replace(value=_neutral(r)), shapes)


def over_axis(telemetry: Any, axis: str) -> Any:
  """Readings combined over a mesh axis, inside `shard_map`."""
  return _map(
    lambda r: r.replace(value=(lax.pmax if r.reduce == 'max' else lax.psum)(r.value, axis)),
    telemetry,
  )


def by_layer(*stacks: Telemetry) -> Telemetry:
  """The readings of stacks of layers that follow one another,
  each with one row a layer that has it.
  """
  joined: Telemetry = {}
  for name, reading in ((name, r) for stack in stacks for name, r in stack.items()):
    if name in joined:
      reading = reading.replace(value=jnp.concatenate([joined[name].value, reading.value]))
    joined[name] = reading
  return joined


def values(telemetry: Mapping[str, Reading]) -> dict[str, jax.Array]:
  """As metrics: NAME_N of every reading."""
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
