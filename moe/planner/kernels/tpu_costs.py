"""What traced Mosaic kernels compute and move at a given routing. It is read off their jaxprs;
nothing is compiled or run.

The arrays that depend on routing (groups and rows of tiles, grid sizes) are computed from the known
arguments. Then every kernel's dots and index maps are evaluated over its grid.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from moe.planner.kernels.tracing import walk


class Kernel(NamedTuple):
  """A pallas_call: its equation, and its arguments, None where unknown."""

  equation: Any
  arguments: list

  @property
  def name(self) -> str:
    return self.equation.params['name']


def traced_kernels(function: Callable, arguments: tuple) -> list[Kernel]:
  """The kernels that `function` calls, in order. `arguments` are as in `walk`."""
  found = []

  def visit(equation, inputs):
    if equation.primitive.name == 'pallas_call':
      found.append(Kernel(equation, inputs))

  walk(function, arguments, 'tpu', visit)
  return found


def itemise(kernel: Kernel) -> dict[str, Any]:
  """Grid steps, FLOPs of the dots in steps that compute, and HBM bytes by operand."""
  mapping = kernel.equation.params['grid_mapping']
  dynamic, prefetched = mapping.num_dynamic_grid_bounds, mapping.num_index_operands
  bounds = iter(kernel.arguments[:dynamic])
  grid = tuple(size if isinstance(size, int) else int(next(bounds)) for size in mapping.grid)
  tables = [np.asarray(x) for x in kernel.arguments[dynamic : dynamic + prefetched]]
  steps = np.stack(np.meshgrid(*(np.arange(n) for n in grid), indexing='ij'), axis=-1).reshape(
    -1, len(grid)
  )
  computing = len(steps)
  if len(tables) == 3:  # each tile's group, first row and end: kernels skip tiles without rows
    computing = int((tables[2] > tables[1])[steps[:, -1]].sum())
  # Rows are fetched into the scratch array with two buffers, each time the block of their indices
  # (the first operand) changes.
  scratch = [getattr(a, 'inner_aval', a) for a in mapping.scratch_avals]
  buffer = next((a for a in scratch if len(a.shape) == 3 and a.shape[0] == 2), None)
  moved = {}
  for number, block in enumerate(mapping.block_mappings):
    aval = block.transformed_block_aval
    if 'any' in str(aval).lower():
      operand, changes = 'fetched rows', _changes(mapping.block_mappings[0], steps, tables)
      size = math.prod(buffer.shape[1:]) * buffer.dtype.itemsize
    else:
      operand = (
        f'{"result" if number >= mapping.num_inputs else "operand"} {block.array_aval.str_short()}'
      )
      changes = _changes(block, steps, tables)
      inner = [d for d in block.ref_aval.shape]
      size = math.prod(inner) * block.array_aval.dtype.itemsize
    moved[operand] = moved.get(operand, 0) + changes * size
  flops = computing * sum(_dot_flops(kernel.equation.params['jaxpr']))
  return {
    'kernel': kernel.name,
    'grid': list(grid),
    'visits': computing,
    'flops': flops,
    'bytes': sum(moved.values()),
    'bytes_of': moved,
  }


def _changes(block, steps, tables) -> int:
  """How often the pipeline copies a block: on the first step, and whenever its index changes."""
  index = jax.jit(jax.vmap(lambda step: _block_index(block, step, tables)))
  indices = np.stack([np.asarray(i) for i in index(steps.astype(np.int32))], axis=-1)
  return 1 + int((indices[1:] != indices[:-1]).any(axis=1).sum())


def _block_index(block, step, tables):
  starts = block.compute_start_indices_interpret(tuple(step), *tables)
  return [jax.numpy.asarray(s) for s in starts]


def _dot_flops(jaxpr) -> Iterator[int]:
  for equation in jaxpr.eqns:
    if equation.primitive.name == 'dot_general':
      (contracted, _), _ = equation.params['dimension_numbers']
      left = equation.invars[0].aval.shape
      yield (
        2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
      )
    # Only one branch of a cond (pl.when) computes.
    branches = [list(_dot_flops(b.jaxpr)) for b in equation.params.get('branches', ())]
    yield from max(branches, key=sum, default=[])
    for parameter in equation.params.values():
      if hasattr(parameter, 'jaxpr'):
        yield from _dot_flops(parameter.jaxpr)
