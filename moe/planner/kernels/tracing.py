"""Traces a program whose routing is known, so that its costs can be read off, and sets them beside
the least that the layer needs.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from moe.ops.implementation import compiling_for
from moe.planner.kernels.programs import Shape, programs

CALLS = ('jit', 'pjit', 'closed_call', 'custom_jvp_call', 'custom_vjp_call')


def walk(
  function: Callable, arguments: tuple, platform: str, visit: Callable[[Any, list], None]
) -> None:
  """Calls `visit(equation, inputs)` for every kernel, and for every other equation whose inputs are
  not all known.

  `arguments` are arrays where they are known, else ShapeDtypeStructs. What follows from known ones
  (tiles, grid sizes) is computed; other `inputs` are None. Nothing is compiled, and no kernel runs.
  """
  flat, tree = jax.tree.flatten(arguments)
  known = [None if isinstance(x, jax.ShapeDtypeStruct) else x for x in flat]
  with compiling_for(platform):
    closed = jax.make_jaxpr(lambda *x: function(*jax.tree.unflatten(tree, x)))(*flat)
  _evaluate(closed, known, visit)


def inner(equation) -> core.ClosedJaxpr:
  """The jaxpr that an equation of CALLS calls."""
  called = next(p for p in equation.params.values() if isinstance(p, core.ClosedJaxpr | core.Jaxpr))
  return called if isinstance(called, core.ClosedJaxpr) else core.ClosedJaxpr(called, ())


def balanced_layer(shape: Shape, dtype: jnp.dtype) -> tuple[Callable, tuple]:
  """routed_ffn, forward and backward, and its arguments for `walk`. Tokens choose experts round
  robin, so the groups are as equal as possible.
  """
  t, k, e = shape.tokens, shape.experts_per_token, shape.num_experts
  program = next(
    p for p in programs(shape, dtype) if (p.op, p.direction) == ('routed_ffn', 'backward')
  )
  experts_TK = jnp.asarray((np.arange(t * k) % e).reshape(t, k), jnp.int32)
  return program.function, (*program.arguments[:-1], experts_TK)


def against_the_least(
  shape: Shape, dtype: jnp.dtype, kernels: Sequence[dict], moved: int
) -> dict[str, Any]:
  """A record of the kernels' FLOPs and the bytes `moved`, beside the least that routed_ffn needs,
  forward and backward.
  """
  t, k, e, d, f = (
    shape.tokens,
    shape.experts_per_token,
    shape.num_experts,
    shape.d_model,
    shape.d_expert,
  )
  size = jnp.dtype(dtype).itemsize
  least_bytes_of = {
    'weights read forward and backward, gradients written': 3 * 3 * e * d * f * 4,
    'tokens x, y; x, dy, dx': 5 * t * d * size,
    'rows once each way': 2 * t * k * d * size,
  }
  flops, least_flops = sum(kernel['flops'] for kernel in kernels), 2 * 3 * t * k * d * f * 3
  least_bytes = sum(least_bytes_of.values())
  return {
    'shape': shape.name,
    'dtype': str(jnp.dtype(dtype)),
    'kernels': kernels,
    'flops': flops,
    'least_flops': least_flops,
    'flops_ratio': round(flops / least_flops, 3),
    'least_bytes': least_bytes,
    'least_bytes_of': least_bytes_of,
    'bytes_ratio': round(moved / least_bytes, 3),
  }


def _evaluate(closed, arguments, visit):
  """Values of the results; None for those that depend on unknown arguments."""
  jaxpr = closed.jaxpr
  values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*closed.consts, *arguments), strict=True))
  read = lambda v: v.val if isinstance(v, core.Literal) else values[v]
  for equation in jaxpr.eqns:
    inputs, outputs = [read(v) for v in equation.invars], [None] * len(equation.outvars)
    if equation.primitive.name in CALLS:
      outputs = _evaluate(inner(equation), inputs, visit)
    elif equation.primitive.name != 'pallas_call' and all(x is not None for x in inputs):
      outputs = equation.primitive.bind(*inputs, **equation.params)
      outputs = outputs if equation.primitive.multiple_results else [outputs]
    else:
      visit(equation, inputs)
    values.update(zip(equation.outvars, outputs, strict=True))
  return [read(v) for v in jaxpr.outvars]
