"""The programs to compile: every op, forward and backward, at the shapes of the paper's models and
at odd ones.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from moe.config import FEW_BITS
from moe.ops.attention import attention
from moe.ops.combine import combine
from moe.ops.dispatch import dispatch
from moe.ops.dispatch_plan import make_plan
from moe.ops.grouped_matmul import grouped_matmul
from moe.ops.quantized import quantize
from moe.ops.routed_ffn import ExpertWeights, routed_ffn, routed_ffn_of_stack
from moe.ops.router import route


class Shape(NamedTuple):
  """One MoE layer on one device: T = sequences · length tokens."""

  name: str
  sequences: int
  length: int
  d_model: int
  num_heads: int
  head_dim: int
  num_experts: int
  experts_per_token: int
  d_expert: int
  devices: int = 1  # that share the layer's experts; E and K here are one device's part on average
  layers: int = 1  # whose experts are stacked in one array, as in decoding

  @property
  def tokens(self) -> int:
    return self.sequences * self.length


# The layer of each model (Table 7; Sections 5.1, 7.1), with as many tokens as one device of a
# training run may hold.
PAPER = (
  Shape('2b', 4, 2048, 1280, 10, 128, 63, 7, 864),
  Shape('16b', 2, 4096, 2048, 16, 128, 64, 6, 1408),
  # The whole layer exceeds a v5e's memory.
  Shape('145b', 1, 4096, 4096, 32, 128, 32, 3, 1408, devices=4),
  # Half of the experts, which are as wide as dense FFNs.
  Shape('gshard_137b', 4, 4096, 4096, 32, 128, 4, 1, 10_944, devices=2),
)
ODD = (
  Shape('odd', 3, 67, 200, 3, 40, 5, 2, 100),
  Shape('one_token', 1, 1, 48, 1, 16, 3, 3, 24),
  Shape('no_token', 0, 8, 64, 2, 32, 4, 2, 32),
  Shape('proxy', 8, 256, 256, 4, 64, 64, 7, 176),
)


# One token per row, through as many of the 16B's 27 MoE layers as fit on every target in float32.
DECODING = (
  Shape('16b_row', 1, 1, 2048, 16, 128, 64, 6, 1408, layers=4),
  Shape('16b_rows', 64, 1, 2048, 16, 128, 64, 6, 1408, layers=4),
)


class Program(NamedTuple):
  """A function of arrays, and the shapes and types to compile it for."""

  op: str
  direction: str  # forward | backward (forward included, as in training) | decoding[, int8]
  function: Callable
  arguments: tuple

  def described(self) -> dict:
    """What a record says about the program. `dtype` is that of the first argument."""
    leaves = jax.tree.leaves(self.arguments)
    arguments = [f'{a.dtype}{list(a.shape)}' for a in leaves]
    return {
      'op': self.op,
      'direction': self.direction,
      'arguments': arguments,
      'dtype': str(leaves[0].dtype),
    }


def programs(shape: Shape, dtype: jnp.dtype) -> list[Program]:
  """Every op of the layer at one shape, called through its API with implementation='auto'. For a
  shape of several layers, only what decoding runs.
  """
  s, t, d, f, e, k = (
    shape,
    shape.tokens,
    shape.d_model,
    shape.d_expert,
    shape.num_experts,
    shape.experts_per_token,
  )
  array = lambda *dims, of=dtype: jax.ShapeDtypeStruct(dims, of)
  ids_TK, gates_TK = array(t, k, of=jnp.int32), array(t, k, of=jnp.float32)
  tokens_TD, rows_RD = array(t, d), array(t * k, d)
  weights = ExpertWeights(*(array(e, *dims, of=jnp.float32) for dims in ((d, f), (d, f), (f, d))))
  head_BLHC = array(s.sequences, s.length, s.num_heads, s.head_dim)
  segments_BL = array(s.sequences, s.length, of=jnp.int32)
  plan = lambda ids: make_plan(ids, e)
  calls = {
    'dispatch': (lambda x, ids: dispatch(x, plan(ids)), (tokens_TD,), (ids_TK,)),
    'combine': (lambda x, g, ids: combine(x, g, plan(ids)), (rows_RD, gates_TK), (ids_TK,)),
    'grouped_matmul': (grouped_matmul, (rows_RD, array(e, d, f)), (array(e, of=jnp.int32),)),
    'routed_ffn': (
      lambda x, g, w, ids: routed_ffn(x, g, plan(ids), w, dtype=dtype),
      (tokens_TD, gates_TK, weights),
      (ids_TK,),
    ),
    'router': (
      lambda logits, real: route(logits, real, k * s.devices),
      (array(s.sequences, s.length, e * s.devices, of=jnp.float32),),
      (array(s.sequences, s.length, of=jnp.bool_),),
    ),
    'attention': (attention, (head_BLHC, head_BLHC, head_BLHC), (segments_BL,)),
  }
  if s.layers > 1:
    numbers = ExpertWeights(*(array(s.layers * e, *dims) for dims in ((d, f), (d, f), (f, d))))
    in_stack = lambda x, g, w, ids: routed_ffn_of_stack(x, g, plan(ids), w, e, dtype=dtype)
    stacks = {'decoding': numbers}
    for kind in FEW_BITS:
      few = (jax.eval_shape(lambda w, kind=kind: quantize(w, kind), w) for w in numbers)
      stacks[f'decoding, {kind}'] = ExpertWeights(*few)
    function, floats, others = calls['router']
    return [
      *(
        Program('routed_ffn', direction, in_stack, (tokens_TD, gates_TK, stack, ids_TK))
        for direction, stack in stacks.items()
      ),
      Program('router', 'decoding', function, (*floats, *others)),
    ]
  made = []
  for op, (function, floats, others) in calls.items():
    made.append(Program(op, 'forward', function, (*floats, *others)))
    made.append(Program(op, 'backward', with_gradients(function, len(floats)), (*floats, *others)))
  return made


def with_gradients(function, num_floats):
  """A function that returns the values and the gradients of the float arguments. The cotangents are
  the values themselves, so that the compiler cannot fold a gradient away.
  """

  def run(*arguments):
    floats, others = arguments[:num_floats], arguments[num_floats:]
    values, pull = jax.vjp(lambda *x: function(*x, *others), *floats)
    cotangent = lambda y: (
      y if jnp.issubdtype(y.dtype, jnp.floating) else jnp.zeros(y.shape, jax.dtypes.float0)
    )
    return values, pull(jax.tree.map(cotangent, values))

  return run
