"""Quantized weights against NumPy loops: the numbers they stand for, and every product of them."""

import jax
import numpy as np
import pytest

from moe.config import FEW_BITS
from moe.errors import UserError
from moe.ops.dispatch_plan import make_plan
from moe.ops.quantized import Quantized, as_numbers, quantize
from moe.ops.routed_ffn import ExpertWeights, routed_ffn, routed_ffn_of_stack
from moe.ops.weights import linear
from tests import oracles
from tests.moe.ops.backends import over
from tests.moe.ops.routing import routing
from tests.oracles import exact
from tests.small import assert_close

# TPU kernels take these widths without padding, though they are not multiples of their blocks.
LAYERS, E, D, F = 2, 5, 128, 96


def numbers(w: Quantized) -> np.ndarray:
  """The numbers of one matrix in float64, entry by entry from the bytes."""
  values, scales = np.asarray(w.values), exact(w.scales)
  result = np.empty(w.shape)
  for x, y in np.ndindex(*w.shape):
    if values.dtype == np.int8:
      result[x, y] = int(values[x, y]) * scales[0, y]
      continue
    group, place = divmod(x, 32)
    byte = int(values[group * 16 + place % 16, y])
    result[x, y] = ((byte >> 4 if place >= 16 else byte & 15) - 8) * scales[group, y]
  return result


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize('kind', FEW_BITS)
def test_every_number_is_the_nearest_there_is(kind):
  """A number is at most half a step off. int4 has no 8: beyond its 7th step, it may be a whole
  step off.
  """
  w_XY = drawn(64, 6)
  w_XY[:, 2] = 0
  w_XY[:32, 3] = np.abs(w_XY[:32, 3])
  made = quantize(w_XY, kind)
  stands_for = numbers(made)
  np.testing.assert_array_equal(as_numbers(made, np.float32), np.float32(stands_for))
  rows = 64 if kind == 'int8' else 32
  for x, y in np.ndindex(*w_XY.shape):
    of_group = w_XY[x // rows * rows :][:rows, y]
    step = np.abs(of_group).max() / (127 if kind == 'int8' else 8)
    most = 0.5 if kind == 'int8' or abs(w_XY[x, y]) < 7.5 * step else 1
    # Scales are rounded too, int4's to bfloat16.
    assert abs(stands_for[x, y] - w_XY[x, y]) <= step * (most + 8 / 256) + 1e-6
  assert not stands_for[:, 2].any()


def test_bits_of_a_weight():
  w_XY = drawn(256, 64)
  bits = {kind: quantize(w_XY, kind).nbytes * 8 / w_XY.size for kind in FEW_BITS}
  assert bits == {'int8': 8 + 32 / 256, 'int4': 4.5}


def test_groups_must_divide_the_rows():
  with pytest.raises(UserError, match='one scale per 32 rows of a matrix: 40 rows'):
    quantize(drawn(40, 8), 'int4')


# (kind, rows, x, y). A GPU takes 256 × 40 in two parts. 320 is not a multiple of TPU's blocks.
PRODUCTS = [(kind, *row) for row in ((1, 256, 40), (5, 320, 40), (40, 64, 24)) for kind in FEW_BITS]


@over('kind, rows, x, y', dict.fromkeys(('reference', 'xla', 'pallas_gpu', 'pallas_tpu'), PRODUCTS))
def test_a_product(implementation, kind, rows, x, y):
  a, w = drawn(2, rows, x, seed=1), quantize(drawn(x, y), kind)
  found = linear(a, w, np.float32, implementation)
  assert_close(found, exact(a) @ numbers(w), 2e-6)


ROWS = [(kind, *row) for row in ((1, 3), (9, 2), (40, 2)) for kind in FEW_BITS]


@over('kind, tokens, k', dict.fromkeys(('reference', 'xla', 'pallas_gpu', 'pallas_tpu'), ROWS))
def test_routed_ffn(implementation, kind, tokens, k):
  """Compares one layer, alone and in a stack, with a loop over tokens."""
  x_TD, gates_TK = drawn(tokens, D, seed=2), drawn(tokens, k, seed=3)
  experts_TK = routing(0, tokens, E, k, 'hot')
  shapes = ((D, F), (D, F), (F, D))
  own = [quantize(drawn(E, *shape, seed=4) / 8, kind) for shape in shapes]
  expert = lambda e: oracles.Expert(*(numbers(jax.tree.map(lambda a: a[e], w)) for w in own))
  true_TD = oracles.routed_ffn(
    exact(x_TD), exact(gates_TK), experts_TK, list(map(expert, range(E)))
  )
  stacks = [jax.tree.map(lambda a: np.concatenate([np.zeros_like(a), a]), w) for w in own]
  options = {'dtype': 'float32', 'implementation': implementation}

  @jax.jit
  def run(x_TD, gates_TK, experts_TK, weights, stacks, first):
    plan = make_plan(experts_TK, E)
    return (
      routed_ffn(x_TD, gates_TK, plan, weights, **options),
      routed_ffn_of_stack(x_TD, gates_TK, plan, stacks, first, **options),
    )

  weights = ExpertWeights(*own), ExpertWeights(*stacks)
  for result_TD in run(x_TD, gates_TK, experts_TK, *weights, E * (LAYERS - 1)):
    assert_close(result_TD, true_TD, 2e-6)
