"""The routed FFN where tokens have different numbers of experts, against a loop: outputs and
gradients.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.ops.quantized import GROUP, quantize
from moe.ops.routed_ffn import FEW, ExpertWeights, few, routed_ffn, routed_ffn_of_some
from tests import oracles
from tests.moe.ops.backends import over
from tests.oracles import exact
from tests.small import assert_close

E, K, D, F = 5, 3, 8, 12
TOKENS = (FEW + 5, 1)


@functools.partial(jax.jit, static_argnames=('room', 'implementation'))
def run(x_TD, gates_TK, experts_TK, weights, dy_TD, room, implementation):
  ffn = functools.partial(routed_ffn, dtype=jnp.float32, implementation=implementation)
  some = lambda x, g, w: routed_ffn_of_some(x, g, experts_TK, w, room, ffn)
  y_TD, pull = jax.vjp(some, x_TD, gates_TK, weights)
  return y_TD, *pull(dy_TD)


@over('tokens', dict.fromkeys(('reference', 'xla', 'pallas_gpu', 'pallas_tpu'), TOKENS))
def test_against_a_loop_over_tokens(implementation, tokens):
  """Tokens have from no expert to K, and `room` is just enough or more than that."""
  generator = np.random.default_rng(tokens)
  normal = lambda *shape: generator.normal(size=shape).astype(np.float32)
  experts_TK = np.stack([generator.permutation(E)[:K] for _ in range(tokens)]).astype(np.int32)
  is_none_TK = generator.random((tokens, K)) < 0.4
  is_none_TK[0] = [False, True, False]
  if tokens > 1:
    is_none_TK[1:3] = [[True] * K, [False] * K]
  x_TD, gates_TK, dy_TD = normal(tokens, D), normal(tokens, K), normal(tokens, D)
  weights = ExpertWeights(*(normal(E, *shape) / 2 for shape in ((D, F), (D, F), (F, D))))
  experts = [oracles.Expert(*matrices) for matrices in zip(*map(exact, weights), strict=True)]
  # A missing expert is one of zeros, so its gate has no effect.
  experts.append(oracles.Expert(*(np.zeros(w.shape[1:]) for w in weights)))
  chosen_TK = np.where(is_none_TK, E, experts_TK)
  given = exact(x_TD), exact(gates_TK), chosen_TK, experts
  true_TD = oracles.routed_ffn(*given)
  dx_TD, d_gates_TK, d_experts = oracles.routed_ffn_gradients(*given, exact(dy_TD))
  d_weights = [np.stack(of_one) for of_one in zip(*d_experts[:E], strict=True)]
  for room in ((~is_none_TK).sum(), tokens * K):
    found = run(x_TD, gates_TK, chosen_TK, weights, dy_TD, int(room), implementation)
    for computed, expected in zip(jax.tree.leaves(found), (true_TD, dx_TD, d_gates_TK, *d_weights)):
      assert_close(computed, expected, 2e-6, f'room {room}')


@pytest.mark.parametrize('kind', [None, 'int8', 'int4'])
def test_many_rows_of_few_tokens_read_weights_as_few_do(kind, monkeypatch):
  """Quantized weights are then never dequantized as a whole."""
  generator = np.random.default_rng(0)
  normal = lambda *shape: generator.normal(size=shape).astype(np.float32)
  tokens, experts, width, hidden, k = 9, 6, 2 * GROUP, 2 * GROUP, 5
  experts_TK = np.stack([generator.permutation(experts)[:k] for _ in range(tokens)])
  experts_TK = jnp.where(generator.random((tokens, k)) < 0.3, experts, experts_TK)
  shapes = (width, hidden), (width, hidden), (hidden, width)
  weights = ExpertWeights(*(jnp.asarray(normal(experts, *shape) / 8) for shape in shapes))
  x_TD, gates_TK = jnp.asarray(normal(tokens, width)), jnp.asarray(normal(tokens, k))
  if kind:
    weights = ExpertWeights(*(quantize(w, kind) for w in weights))
  seen, original = [], few.routed_ffn
  monkeypatch.setattr(few, 'routed_ffn', lambda *a: seen.append(a) or original(*a))
  found = {}
  for name, is_few in (('reference', False), ('xla', True)):
    ffn = functools.partial(routed_ffn, dtype=jnp.float32, implementation=name, few=is_few)
    found[name] = routed_ffn_of_some(x_TD, gates_TK, experts_TK, weights, tokens * k, ffn)
    assert bool(seen) == is_few
  assert_close(found['xla'], found['reference'], 2e-6, kind or 'float32')


def test_what_lies_past_the_last_group_is_never_read():
  """Kernels leave those rows as they find them. NaN there must not reach results or gradients."""
  slots, width, here, choices, room = 6, 4, 2, 2, 16
  generator = np.random.default_rng(0)
  x_AD = jnp.asarray(generator.normal(size=(slots, width)), jnp.float32)
  gates_AK = jnp.asarray(generator.random((slots, choices)), jnp.float32)
  experts_AK = jnp.array([[0, 1], [1, 2], [2, 2], [2, 0], [0, 2], [1, 0]])  # 2: none
  scales_G = jnp.array([2.0, 3.0])
  weights = ExpertWeights(jnp.zeros((here, width, 1)), jnp.zeros((here, width, 1)), scales_G)

  @jax.custom_vjp
  def run(x_RD, gates_R1, plan, weights):
    gate_R = gates_R1 * weights.down_EFD[plan.experts_TK[:, 0]][:, None]
    return jnp.where((jnp.arange(room) < plan.group_sizes_E.sum())[:, None], x_RD * gate_R, jnp.nan)

  def backward(kept, d_RD):
    x_RD, gates_R1, plan, weights = kept
    ours = (jnp.arange(room) < plan.group_sizes_E.sum())[:, None]
    scale_R1 = weights.down_EFD[plan.experts_TK[:, 0]][:, None]
    d_x, d_gates = d_RD * gates_R1 * scale_R1, (d_RD * x_RD * scale_R1).sum(axis=1, keepdims=True)
    return jnp.where(ours, d_x, jnp.nan), jnp.where(ours, d_gates, jnp.nan), None, None

  run.defvjp(lambda *operands: (run(*operands), operands), backward)
  experts = lambda x, g: routed_ffn_of_some(x, g, experts_AK, weights, room, run)
  y_AD, pull = jax.vjp(experts, x_AD, gates_AK)
  scale_AK = jnp.where(experts_AK < here, scales_G[jnp.minimum(experts_AK, 1)], 0)
  truth = lambda x, g: (g * scale_AK).sum(axis=1)[:, None] * x
  y_truth, pull_truth = jax.vjp(truth, x_AD, gates_AK)
  for computed, expected in zip((y_AD, *pull(y_AD)), (y_truth, *pull_truth(y_AD)), strict=True):
    np.testing.assert_allclose(computed, expected, rtol=1e-6)
