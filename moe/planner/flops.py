"""FLOPs of a traced program, such as the training step, over all devices: what the model needs,
what is recomputed, and what is padding.

Only matrix products count, and a multiply-add is 2, as in `moe/accounting.py`. They are read off
the jaxpr without its dead code. There loops have their lengths, and rematerialised work is named
`rematted_computation`. Kernels count by the products that they are known to make: attention over
all pairs of tokens, experts at balanced routing, however many rows a buffer has. Further rounds of
an exchange do not count, since balanced routing needs none.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.interpreters import partial_eval

from moe.parallel.scopes import branch_shares
from moe.planner.kernels import names

_REMATERIALISED = 'rematted_computation'


@dataclasses.dataclass
class Flops:
  """FLOPs of one step, over all devices."""

  model: float = 0.0  # what the model needs, once: comparable with `launch.describe`
  recomputed: float = 0.0  # by model.remat, and by attention kernels, which keep no scores
  padding: float = 0.0  # parts of kernels' tiles beyond their groups and widths
  # Blocks of pairs that causal attention leaves out. The fields above count them as if computed.
  skipped: float = 0.0

  @property
  def executed(self) -> float:
    return self.model + self.recomputed + self.padding - self.skipped


@dataclasses.dataclass(frozen=True)
class Setting:
  """Sizes without padding. The shapes in a jaxpr do not tell them: they include the rows of buffers
  and the padding of kernels.
  """

  # Assignments that a device's experts compute in one microbatch when routing is balanced.
  rows: float
  seq_len: int
  head_dim: int


def count(closed: core.ClosedJaxpr, setting: Setting) -> Flops:
  """Counts a traced step; `closed` is the jaxpr of `jax.jit(step).trace(…)`."""
  jaxpr, _ = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
  totals = Flops()
  _walk(jaxpr, 1.0, '', totals, setting)
  return totals


def _walk(jaxpr, times, path, totals, setting):
  for equation in jaxpr.eqns:
    name, where = equation.primitive.name, f'{path}/{equation.source_info.name_stack}'
    if name == 'dot_general':
      _add(totals, where, times * dot_flops(equation))
    elif name == 'pallas_call':
      _add_kernel(totals, where, times, equation, setting)
    elif name == 'scan':
      _walk(
        equation.params['jaxpr'].jaxpr, times * equation.params['length'], where, totals, setting
      )
    elif name == 'shard_map':
      shards = math.prod(
        equation.params['mesh'].shape[axis] for axis in equation.params['newly_manual_axes']
      )
      _walk(_plain(equation.params['jaxpr']), times * shards, where, totals, setting)
    elif name == 'cond':
      shares = branch_shares(str(equation.source_info.name_stack))
      if shares:
        for branch, share in zip(equation.params['branches'], shares, strict=True):
          _walk(branch.jaxpr, times * share, where, totals, setting)
        continue
      branches = [Flops() for _ in equation.params['branches']]
      for branch, part in zip(equation.params['branches'], branches):
        _walk(branch.jaxpr, times, where, part, setting)
      # Branches for different platforms make the same products; of others the largest counts.
      most = max(branches, key=lambda part: part.executed)
      for field in dataclasses.fields(Flops):
        setattr(totals, field.name, getattr(totals, field.name) + getattr(most, field.name))
    elif name != 'while':
      for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr):
        if _is_jaxpr(inner):
          _walk(_plain(inner), times, where, totals, setting)


def dot_flops(equation: Any) -> int:
  """FLOPs of a dot_general."""
  (contracted, _), _ = equation.params['dimension_numbers']
  left = equation.invars[0].aval.shape
  return (
    2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
  )


def _add(totals, where, model, executed=None):
  executed = model if executed is None else executed
  if _REMATERIALISED in where:
    totals.recomputed += executed
  else:
    totals.model += model
    totals.recomputed += executed - model


def _add_kernel(totals, where, times, equation, setting):
  name = equation.params['name'] or ''
  kernel = names.of_op('routed_ffn', name)
  if kernel and kernel.products:
    rows, width, hidden = _expert_shape(equation)
    exact = 2 * kernel.products * setting.rows * width * hidden
    estimate = equation.params['cost_estimate']
    padded = estimate.flops * setting.rows / rows if estimate else exact
    _add(totals, where, times * exact)
    totals.padding += times * (padded - exact)
  kernel = names.of_op('attention', name)
  if kernel and kernel.products:
    made, needed = kernel.products, kernel.products - kernel.again
    (heads, length, width), block = _attention_shape(equation)
    blocks, padded = max(1, length // block), times * 2 * heads * length**2 * width
    exact = times * 2 * heads * setting.seq_len**2 * setting.head_dim
    _add(totals, where, needed * exact, made * exact)
    totals.padding += made * (padded - exact)
    # A triangle of blocks is computed.
    totals.skipped += made * padded * (1 - (blocks + 1) / (2 * blocks))


def _expert_shape(equation):
  """(rows, D, F) of a kernel of the routed FFN, from the shapes of its arguments and results."""
  arrays = [v.aval for v in (*equation.invars, *equation.outvars)]
  shapes = [_of_numbers(array) for array in arrays if array.dtype.itemsize in (1, 2, 4)]
  matrices = [s for s in shapes if len(s) == 3 and min(s[1:]) > 1 and s[1] != 1]
  width_hidden = max(matrices, key=math.prod)[1:]
  rows = max(s[0] for s in shapes if len(s) == 2)
  return rows, *width_hidden


def _of_numbers(array):
  """The shape of the matrices in an array. Packed ones, uint8, hold two rows of a matrix in one."""
  if array.dtype != jnp.uint8:
    return array.shape
  *leading, rows, columns = array.shape
  return *leading, 2 * rows, columns


def _attention_shape(equation):
  """((B·H, L, C), block) of an attention kernel, padding included. Queries are (B, H, L, C) in
  splash attention and (B, L, H, C) in the Triton kernels.

  B may be absent on a device with a single sequence.
  """
  name = equation.params['name']
  floats = [v.aval.shape for v in equation.invars if jnp.issubdtype(v.aval.dtype, jnp.floating)]
  query = next(shape for shape in floats if len(shape) in (3, 4))
  b, x, y, c = (1,) * (4 - len(query)) + query
  heads, length, block = (x, y, 512) if name.startswith('splash') else (y, x, 64)
  return (b * heads, length, c), min(block, length)


def _is_jaxpr(x):
  return isinstance(x, core.ClosedJaxpr | core.Jaxpr)


def _plain(jaxpr):
  return jaxpr.jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else jaxpr
