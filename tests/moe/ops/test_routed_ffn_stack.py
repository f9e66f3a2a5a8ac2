"""Every implementation of the routed FFN of one layer, given the stacked weights of several."""

import jax
import numpy as np

from moe.ops.dispatch_plan import make_plan
from moe.ops.routed_ffn import ExpertWeights, routed_ffn_of_stack
from tests import oracles
from tests.moe.ops.backends import over
from tests.moe.ops.routing import routing
from tests.oracles import exact
from tests.small import assert_close

LAYERS, E, D, F = 3, 7, 8, 12
ROWS = [(1, 3), (9, 3), (40, 2)]


@over('tokens, k', dict.fromkeys(('reference', 'xla', 'pallas_gpu', 'pallas_tpu'), ROWS))
def test_a_layer_is_read_out_of_the_stack(implementation, tokens, k):
  """Compares with a loop over tokens. Other layers' weights are NaN, and for kernels also those of
  experts that no token chose.
  """
  generator = np.random.default_rng(0)
  normal = lambda *shape: np.float32(generator.normal(size=shape))
  x_TD, gates_TK, experts_TK = normal(tokens, D), normal(tokens, k), routing(0, tokens, E, k, 'hot')
  own = [normal(E, *shape) / 2 for shape in ((D, F), (D, F), (F, D))]
  experts = [oracles.Expert(*matrices) for matrices in zip(*map(exact, own), strict=True)]
  true_TD = oracles.routed_ffn(exact(x_TD), exact(gates_TK), experts_TK, experts)
  if implementation.startswith('pallas'):
    for w_EXY in own:
      w_EXY[sorted(set(range(E)) - set(experts_TK.flat))] = np.nan

  @jax.jit
  def run(x_TD, gates_TK, experts_TK, weights, layer):
    plan, first = make_plan(experts_TK, E), layer * E
    options = {'dtype': 'float32', 'implementation': implementation}
    return routed_ffn_of_stack(x_TD, gates_TK, plan, weights, first, **options)

  for layer in range(LAYERS):
    stacks = [np.full((LAYERS, *w_EXY.shape), np.nan, np.float32) for w_EXY in own]
    for stack, w_EXY in zip(stacks, own, strict=True):
      stack[layer] = w_EXY
    weights = ExpertWeights(*(stack.reshape(-1, *stack.shape[2:]) for stack in stacks))
    assert_close(run(x_TD, gates_TK, experts_TK, weights, layer), true_TD, 2e-6, str(layer))
