"""What traced Triton kernels compute and move at a given routing. It is read off their jaxprs;
nothing is compiled or run.

Integers that depend on routing (group sizes, tiles) are computed from the known arguments. Each
kernel's jaxpr is then evaluated once for all its programs together: scalars become arrays over the
programs, a branch selects the programs that take it, and a loop multiplies by each program's number
of iterations.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from jax.extend import core

from moe.planner.kernels.tracing import CALLS, inner, walk

_LEAST_CAST = 1 << 20  # bytes that a cast outside kernels, by XLA, must move to be listed


def itemise(function: Callable, arguments: tuple) -> list[dict[str, Any]]:
  """Costs of the kernels that `function` calls and of big casts, in order. `arguments` are as in
  `walk`.
  """
  items = []

  def visit(equation, inputs):
    if equation.primitive.name == 'pallas_call':
      items.append(_kernel(equation, inputs))
    elif equation.primitive.name == 'convert_element_type':
      moved = _bytes(equation.invars[0]) + _bytes(equation.outvars[0])
      if moved >= _LEAST_CAST:
        items.append(
          {
            'kernel': 'XLA: cast',
            'programs': 0,
            'flops': 0,
            'bytes_once': moved,
            'bytes_requested': moved,
          }
        )

  walk(function, arguments, 'gpu', visit)
  return items


def _kernel(equation, inputs) -> dict[str, Any]:
  mapping, jaxpr = equation.params['grid_mapping'], equation.params['jaxpr']
  [programs] = mapping.grid
  totals = {'flops': 0, 'bytes_requested': 0}
  refs = [None if x is None else np.asarray(x) for x in inputs] + [None] * len(equation.outvars)
  _evaluate_kernel(jaxpr, (), refs, np.ones(programs), totals)
  moved = sum(_bytes(v) for v in (*equation.invars, *equation.outvars))
  totals = {key: round(value) for key, value in totals.items()}
  return {'kernel': equation.params['name'], 'programs': programs, 'bytes_once': moved, **totals}


def _evaluate_kernel(jaxpr, consts, arguments, weight, totals):
  """Adds what runs to `totals`, where each program counts `weight` times. Returns the results, None
  for unknown ones.

  A known scalar is an array over the programs, or one number for all. A known ref is the array
  behind it.
  """
  values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *arguments), strict=True))
  read = lambda v: v.val if isinstance(v, core.Literal) else values[v]
  for equation in jaxpr.eqns:
    inputs, outputs = [read(v) for v in equation.invars], [None] * len(equation.outvars)
    match equation.primitive.name:
      case 'program_id':
        outputs = [np.arange(len(weight), dtype=np.int32)]
      case 'get' | 'masked_load':
        totals['bytes_requested'] += weight.sum() * _bytes(equation.outvars[0])
        if equation.outvars[0].aval.shape == () and all(x is not None for x in inputs):
          array, index = inputs
          outputs = [array[np.minimum(index, len(array) - 1)]]
      case 'swap' | 'masked_swap':
        totals['bytes_requested'] += weight.sum() * _bytes(equation.outvars[0])
      case 'dot_general':
        [(axis,), _], _ = equation.params['dimension_numbers']
        depth = equation.invars[0].aval.shape[axis]
        totals['flops'] += weight.sum() * 2 * depth * math.prod(equation.outvars[0].aval.shape)
      case 'cond':
        for index, branch in enumerate(equation.params['branches']):
          taken = weight * (np.asarray(inputs[0]).astype(np.int32) == index)
          _evaluate_kernel(branch.jaxpr, branch.consts, inputs[1:], taken, totals)
      case 'scan':
        body = equation.params['jaxpr']
        consts = _num_consts(equation.params)
        unknown = inputs[:consts] + [None] * (len(inputs) - consts)
        _evaluate_kernel(
          body.jaxpr, body.consts, unknown, weight * equation.params['length'], totals
        )
      case 'while':
        _evaluate_while(equation, inputs, weight, totals)
      case name if name in CALLS:
        called = inner(equation)
        outputs = _evaluate_kernel(called.jaxpr, called.consts, inputs, weight, totals)
      case _ if all(x is not None for x in inputs) and all(
        v.aval.shape == () for v in equation.outvars
      ):
        inputs = np.broadcast_arrays(
          *(np.asarray(x, v.aval.dtype) for x, v in zip(inputs, equation.invars, strict=True))
        )
        outputs = equation.primitive.bind(*inputs, **equation.params)
        outputs = [
          np.asarray(x) for x in (outputs if equation.primitive.multiple_results else [outputs])
        ]
    values.update(zip(equation.outvars, outputs, strict=True))
  return [read(v) for v in jaxpr.outvars]


def _num_consts(scan: dict[str, Any]) -> int:
  """The number of a scan's operands that are constant over its iterations. `scan`: the equation's
  parameters.
  """
  if 'num_consts' in scan:
    return scan['num_consts']
  # jax 0.12 has a tree of the operands: (constants, carry, rows).
  constants, _, _ = scan['ft_in'].unpack()
  return len(constants)


def _evaluate_while(equation, inputs, weight, totals):
  """Evaluates a `fori_loop` with bounds per program. Its carry begins with index and bound."""
  cond_consts, body_consts = equation.params['cond_nconsts'], equation.params['body_nconsts']
  start, stop, *carry = inputs[cond_consts + body_consts :]
  assert cond_consts == 0 and start is not None and stop is not None, (
    'a loop whose length is unknown'
  )
  times = np.maximum(np.asarray(stop) - np.asarray(start), 0)
  body = equation.params['body_jaxpr']
  arguments = inputs[cond_consts : cond_consts + body_consts] + [None] * (2 + len(carry))
  _evaluate_kernel(body.jaxpr, body.consts, arguments, weight * times, totals)


def _bytes(variable) -> int:
  return math.prod(variable.aval.shape) * variable.aval.dtype.itemsize
