"""What is measured, in order of importance: parts, each with its cases and its seconds."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from experiments.benchmarks.device import clock, drawn, layer, models, ops
from experiments.benchmarks.device.kept import kept
from experiments.benchmarks.device.records import rates, record, times
from experiments.benchmarks.device.sizes import Sizes
from moe.ops.implementation import Implementation, Unsupported, check
from moe.ops.matmul import matmul
from moe.planner.kernels.programs import Shape

# Without AUTO, which chooses among the others, and REFERENCE, which they are compared with.
_COMPARED = [
  which.value
  for which in Implementation
  if which not in (Implementation.AUTO, Implementation.REFERENCE)
]


class Part(NamedTuple):
  name: str
  seconds: float  # of all its cases together, compiling included
  cases: dict[str, Callable[[int], list[dict]]]  # name → (number of rounds → records)


def parts(sizes: Sizes) -> list[Part]:
  small, large = sizes.layers
  decode = functools.partial(models.decode_records, sizes)
  return [
    Part('machine', 40, _machine(sizes)),
    Part('ops of the 2B, bfloat16', 150, _ops(small, 'bfloat16')),
    Part('layer of the 2B', 60, _layer(small)),
    Part('train step', 90, {'train step': functools.partial(models.train_records, sizes)}),
    Part('decode', 70, {f'decode, batch {b}': functools.partial(decode, b) for b in sizes.batches}),
    Part('ops of the 16B, bfloat16', 150, _ops(large, 'bfloat16')),
    Part('layer of the 16B', 60, _layer(large)),
    Part('ops of the 2B, float32', 120, _ops(small, 'float32')),
    Part('ops of the 16B, float32', 120, _ops(large, 'float32')),
  ]


def _machine(sizes: Sizes) -> dict:
  return {
    'implementations': lambda rounds: _implementations(),
    'big product': functools.partial(_product, sizes.product),
    'big copy': functools.partial(_copy, sizes.copied),
  }


def _implementations() -> list[dict]:
  """Records of the implementations that are not for this platform."""
  return [record(which, cannot_run=reason) for which, reason in _refusals().items()]


def _refusals() -> dict[str, str]:
  """Implementation → why it is not for this platform."""
  found = {}
  for which in _COMPARED:
    try:
      check(which)
    except Unsupported as reason:
      found[which] = str(reason)
  return found


def _ops(shape: Shape, dtype: str) -> dict:
  cases = {}
  for name in drawn.OPS:
    # A router is float32 whatever the others are: it is measured once.
    if name == 'router' and dtype == 'float32':
      continue
    of = 'float32' if name == 'router' else dtype
    for which in _COMPARED:
      if which not in _refusals():
        run = functools.partial(ops.records, name, shape, of, which)
        cases[f'{name} {shape.name} {of} {which}'] = run
  return cases


def _layer(shape: Shape) -> dict:
  return {
    f'layer {shape.name} ÷ {other}': functools.partial(layer.records, shape, other)
    for other in layer.OTHERS
  }


def _product(size: int, rounds: int) -> list[dict]:
  """The speed of one product of bfloat16 matrices."""
  square = lambda: jax.random.normal(jax.random.key(0), (size, size), jnp.bfloat16)
  given = kept('product', square)
  run, _ = clock.compiled(lambda a: matmul(a, a).astype(a.dtype), given)
  spent = times(clock.measure(lambda: run(given), rounds))
  of_chip = rates(spent['ms'], 2 * size**3, 2 * given.nbytes)
  return [record(f'product of {size} × {size}, bfloat16', **spent, **of_chip)]


def _copy(moved: int, rounds: int) -> list[dict]:
  """The speed of a copy that moves `moved` bytes: half are read, and half written, negated."""
  given = kept('copy', lambda: jnp.ones(moved // 2 // 4, jnp.float32))
  run, _ = clock.compiled(jax.lax.neg, given)
  spent = times(clock.measure(lambda: run(given), rounds))
  return [record(f'copy of {moved >> 10} KiB', **spent, **rates(spent['ms'], 0, moved))]
