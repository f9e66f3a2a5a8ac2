"""An op in one implementation beside the reference, which gets the same inputs in float32. Compared
are values, and gradients for the values as cotangents.

An array's error is its largest difference over its largest magnitude; integers must be equal.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.benchmarks.device import clock, drawn
from experiments.benchmarks.device.drawn import num_bytes
from experiments.benchmarks.device.kept import kept
from experiments.benchmarks.device.records import failed, rates, record, times
from moe.ops.implementation import Unsupported
from moe.planner.kernels.programs import Shape, with_gradients

# bfloat16: operands, activations and results are rounded to 2⁻⁹ of themselves. float32: sums have
# some thousand products, with no factor rounded to TF32 or bfloat16.
TOLERANCES = {'bfloat16': 2e-2, 'float32': 2e-5}


class _Direction(NamedTuple):
  name: str
  function: Callable
  true: Any
  flops: int
  # Bytes, each read or written once. Forward: inputs and values. Backward adds the inputs again,
  # the cotangents and the gradients.
  moved: int


def records(name: str, shape: Shape, dtype: str, implementation: str, rounds: int) -> list[dict]:
  """The records of forward, and of forward and backward together."""
  op, true = kept((name, shape, dtype), lambda: _with_truth(name, shape, dtype))
  given, title = (*op.floats, *op.others), f'{name} {shape.name} {dtype} {implementation}'
  forward = functools.partial(op.call, dtype, implementation)
  try:
    once = num_bytes((given, jax.eval_shape(forward, *given)))
  except Unsupported as reason:
    return [record(title, cannot_run=str(reason))]
  both, twice = with_gradients(forward, len(op.floats)), 2 * once + num_bytes(op.floats)
  made = []
  for direction in (
    _Direction('forward', forward, true[0], op.flops, once),
    _Direction('gradients', both, true, 3 * op.flops, twice),
  ):
    titled = f'{title} {direction.name}'
    try:
      made.append(record(titled, **_measured(direction, given, dtype, rounds)))
    except Exception as error:  # any error of a compiler or device: measure the next all the same
      made.append(failed(titled, error))
  return made


def _measured(direction, given, dtype, rounds):
  run, compile_seconds = clock.compiled(direction.function, *given)
  worst, error = worst_of(run(*given), direction.true)
  ratio, spent = error / TOLERANCES[dtype], times(clock.measure(lambda: run(*given), rounds))
  return {
    **{'ratio_median': ratio, 'ratio_min': ratio, 'ratio_max': ratio, 'bar': 1.0},
    **{'error': error, 'tolerance': TOLERANCES[dtype], 'worst': worst},
    **{**spent, 'compile_seconds': compile_seconds},
    **rates(spent['ms'], direction.flops, direction.moved, dtype),
  }


def worst_of(values: Any, true: Any) -> tuple[str, float]:
  """(the array with the largest error, that error). ValueError if an error is not finite or
  integers differ.
  """
  found = jax.device_get(_errors(values, true))
  for path, (error, unequal) in found.items():
    if unequal:
      raise ValueError(f'wrong numbers: {unequal} integers of {path} differ from the reference')
    if not error < float('inf'):
      raise ValueError(f'wrong numbers: {path} is not finite')
  worst = max(found, key=lambda path: found[path][0])
  return worst, float(found[worst][0])


@jax.jit
def _errors(values, true):
  """Path → (error of floats, how many integers differ)."""
  found = {}
  leaves = zip(jax.tree_util.tree_leaves_with_path(values), jax.tree.leaves(true), strict=True)
  for (path, ours), truth in leaves:
    error, unequal = jnp.float32(0), jnp.int32(0)
    if jnp.issubdtype(ours.dtype, jnp.floating):
      difference = jnp.abs(ours.astype(jnp.float32) - truth).max(initial=0)
      error = jnp.where(difference == 0, 0, difference / jnp.abs(truth).max(initial=0))
    else:
      unequal = (ours != truth).sum(dtype=jnp.int32)
    found[jax.tree_util.keystr(path)] = error, unequal
  return found


def _with_truth(name, shape, dtype):
  """(the op with its inputs, (values, gradients) of the reference in float32), on the device."""
  op = drawn.op(name, shape, dtype)
  given = *jax.tree.map(lambda x: x.astype(jnp.float32), op.floats), *op.others
  reference = functools.partial(op.call, 'float32', 'reference')
  # Products without a given precision would be rounded to TF32 on GPU and to bfloat16 on TPU.
  with jax.default_matmul_precision('highest'):
    run, _ = clock.compiled(with_gradients(reference, len(op.floats)), *given)
  return op, run(*given)
