"""The oracles' hand-written gradients against central differences of their forward functions,
all in float64.
"""

import numpy as np
import pytest

from tests import oracles

_STEP = 1e-5


def _difference(function, x):
  """The gradient with respect to `x`, changed in place, of a function that takes no argument and
  reads x.
  """
  gradient = np.zeros_like(x)
  for index in np.ndindex(x.shape):
    value = x[index]
    ends = []
    for x[index] in (value + _STEP, value - _STEP):
      ends.append(function())
    x[index] = value
    gradient[index] = (ends[0] - ends[1]) / (2 * _STEP)
  return gradient


def _expert(normal, d, f):
  return oracles.Expert(normal(size=(d, f)), normal(size=(d, f)), normal(size=(f, d)))


@pytest.mark.parametrize(('gated', 'mass'), [(False, 1.0), (True, 0.7)])
def test_moe_layer_gradients(gated, mass):
  normal = np.random.default_rng(0).normal
  d, f, e, k = 3, 2, 4, 2
  u_TD, dy_TD = normal(size=(5, d)), normal(size=(5, d))
  weights = oracles.MoEWeights(
    normal(size=(d, e)),
    [_expert(normal, d, f) for _ in range(e)],
    [_expert(normal, d, f)],
    normal(size=d) if gated else None,
  )
  value = lambda: (dy_TD * oracles.moe_layer(u_TD, weights, k, mass)).sum()
  du_TD, d_weights = oracles.moe_layer_gradients(u_TD, weights, k, dy_TD, mass)
  gate = lambda w: [w.shared_gate_D] if gated else []
  flat = lambda w: [
    w.centroids_DE,
    *gate(w),
    *(m for expert in (*w.routed, *w.shared) for m in expert),
  ]
  for x, gradient in zip((u_TD, *flat(weights)), (du_TD, *flat(d_weights)), strict=True):
    np.testing.assert_allclose(gradient, _difference(value, x), rtol=1e-6, atol=1e-8)


def test_routed_ffn_gradients():
  normal = np.random.default_rng(1).normal
  x_TD, dy_TD, gates_TK = normal(size=(4, 3)), normal(size=(4, 3)), normal(size=(4, 2))
  experts_TK = np.array([[0, 2], [2, 1], [1, 0], [0, 1]])
  experts = [_expert(normal, 3, 2) for _ in range(4)]  # the last one gets no token
  value = lambda: (dy_TD * oracles.routed_ffn(x_TD, gates_TK, experts_TK, experts)).sum()
  dx_TD, d_gates_TK, d_experts = oracles.routed_ffn_gradients(
    x_TD, gates_TK, experts_TK, experts, dy_TD
  )
  arrays = (x_TD, gates_TK, *(w for expert in experts for w in expert))
  gradients = (dx_TD, d_gates_TK, *(w for expert in d_experts for w in expert))
  for x, gradient in zip(arrays, gradients, strict=True):
    np.testing.assert_allclose(gradient, _difference(value, x), rtol=1e-6, atol=1e-8)


def test_cross_entropy_gradients():
  normal = np.random.default_rng(2).normal
  hidden_TD, head_DV, targets_T, weights_T = (
    normal(size=(3, 2)),
    normal(size=(2, 4)),
    [3, 0, 1],
    [1.0, 0.0, 0.5],
  )
  _, d_hidden_TD, d_head_DV = oracles.cross_entropy(hidden_TD, head_DV, targets_T, weights_T)
  value = lambda: oracles.cross_entropy(hidden_TD, head_DV, targets_T, weights_T)[0]
  for x, gradient in ((hidden_TD, d_hidden_TD), (head_DV, d_head_DV)):
    np.testing.assert_allclose(gradient, _difference(value, x), rtol=1e-6, atol=1e-8)
