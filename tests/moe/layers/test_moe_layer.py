"""The MoE layer against the loop over tokens, every expert computed densely, and a dense FFN."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.layers.mlp import MLP
from moe.layers.moe_layer import MoELayer, routed_width
from moe.ops.routed_ffn import tiled
from tests import oracles
from tests.oracles import exact
from tests.small import assert_close, small_config

pytestmark = pytest.mark.usefixtures('quick_compile')

B, L, D, E, F = 2, 5, 16, 6, 8
IMPLEMENTATIONS = ('reference', 'xla')


@functools.partial(jax.jit, static_argnums=0)
def run(config, params, u_BLD, ids_BL, dy_BLD):
  """(output, gradients of parameters, gradient of input, statistics)."""
  is_token_BL = jnp.ones((B, L), bool).at[1, -2:].set(False)

  def apply(params, u_BLD):
    layer = MoELayer(config)
    return layer.apply({'params': params}, u_BLD, ids_BL, is_token_BL)

  y_BLD, pull, (stats, *_) = jax.vjp(apply, params, u_BLD, has_aux=True)
  return y_BLD, *pull(dy_BLD), stats


@functools.partial(jax.jit, static_argnums=0)
def run_mlp(config, params, u_BLD, dy_BLD):
  y_BLD, pull = jax.vjp(lambda p, u: MLP(config, F).apply({'params': p}, u), params, u_BLD)
  return y_BLD, *pull(dy_BLD)


def _normal(*shape, seed=0, scale=1.0):
  return (np.random.default_rng([seed, *shape]).normal(size=shape) * scale).astype(np.float32)


def _ids():
  return np.random.default_rng(0).integers(0, 32, (B, L)).astype(np.int32)


def _params(shared, units=E):
  ffn = lambda *leading, width, seed: {
    'gate': _normal(*leading, D, width, seed=seed, scale=0.4),
    'up': _normal(*leading, D, width, seed=seed + 1, scale=0.4),
    'down': _normal(*leading, width, D, seed=seed + 2, scale=0.4),
  }
  params = {
    'router': {'experts': _normal(D, E, scale=0.3)},
    'experts': ffn(units, width=F, seed=10),
  }
  return params | ({'shared': ffn(width=shared * F, seed=20)} if shared else {})


def _weights(params, shared, wide=0, factor=1) -> oracles.MoEWeights:
  """The layer's weights for the oracle. Shared experts are cut out of the joint FFN: expert s has
  the s-th F hidden units. Each of the first `wide` routed experts joins `factor` stored units.
  """
  matrices = lambda tree: [exact(tree[name]) for name in ('gate', 'up', 'down')]
  gate, up, down = matrices(params['experts'])
  units, routed = iter(zip(gate, up, down, strict=True)), []
  for e in range(E):
    beside = zip(*itertools.islice(units, factor if e < wide else 1), strict=True)
    gates, ups, downs = map(list, beside)
    routed.append(oracles.Expert(np.hstack(gates), np.hstack(ups), np.vstack(downs)))
  assert not list(units)
  pieces = []
  for s in range(shared):
    gate, up, down = matrices(params['shared'])
    mine = slice(s * F, (s + 1) * F)
    pieces.append(oracles.Expert(gate[:, mine], up[:, mine], down[mine]))
  gate_D = exact(params['shared_gate']) if 'shared_gate' in params else None
  return oracles.MoEWeights(exact(params['router']['experts']), routed, pieces, gate_D)


@pytest.mark.parametrize('implementation', IMPLEMENTATIONS)
@pytest.mark.parametrize(
  ('k', 'shared', 'gated', 'mass', 'wide', 'factor'),
  [
    (1, 0, False, 1.0, 0, 1),
    (3, 2, False, 1.0, 0, 1),
    (3, 2, True, 1.0, 0, 1),
    (5, 1, True, 0.6, 0, 1),
    (3, 1, False, 1.0, 2, 2),
    (4, 0, False, 0.7, 5, 3),
    (2, 1, False, 1.0, E, 2),
  ],
)
def test_against_a_loop_over_tokens(k, shared, gated, mass, wide, factor, implementation):
  """Compares the output, and the gradients of the input and of all weights, those of the router and
  of the shared gate included. Some experts are wider than others.
  """
  config = small_config(
    **{
      'moe.experts_per_token': k,
      'moe.num_shared_experts': shared,
      'moe.shared_gate': gated,
      'moe.gate_mass': mass,
      'moe.wide_experts': wide,
      'moe.wide_factor': max(factor, 2),
      'ops.implementation': implementation,
    }
  )
  params = _params(shared, E + wide * (factor - 1))
  u_BLD, dy_BLD = _normal(B, L, D, seed=1), _normal(B, L, D, seed=2)
  if gated:
    params['shared_gate'] = _normal(D, seed=3, scale=0.5)
  y_BLD, d_params, du_BLD, stats = run(config, params, u_BLD, _ids(), dy_BLD)
  weights, u_TD, dy_TD = (
    _weights(params, shared, wide, factor),
    exact(u_BLD).reshape(-1, D),
    exact(dy_BLD).reshape(-1, D),
  )
  du_TD, d_weights = oracles.moe_layer_gradients(u_TD, weights, k, dy_TD, mass)
  assert_close(y_BLD.reshape(-1, D), oracles.moe_layer(u_TD, weights, k, mass), 1e-5, 'output')
  assert_close(du_BLD.reshape(-1, D), du_TD, 1e-5, 'd input')
  computed = _weights(d_params, shared, wide, factor)
  assert_close(list(computed), list(d_weights), 1e-5, 'd weights')
  taken_T = [(oracles.route(u_D, weights.centroids_DE, k, mass)[0] > 0).sum() for u_D in u_TD[:8]]
  assert int(stats.counts_BE.sum()) == sum(taken_T)  # two of the ten tokens are padding
  assert (sum(taken_T) < 8 * k) == (mass < 1)


def test_forced_balance_deals_out_the_experts_and_keeps_the_routers_gradients():
  """Tokens 0, 1, … get experts (0, 1), (2, 3), (4, 5), (0, 1), …, with the gates that the router
  had for the token's own choices.
  """
  k = 2
  config = small_config(
    **{
      'moe.experts_per_token': k,
      'moe.num_shared_experts': 0,
      'ops.implementation': 'reference',
      'ops.force_balanced_routing': True,
    }
  )
  params, u_BLD, dy_BLD = _params(0), _normal(B, L, D, seed=1), _normal(B, L, D, seed=2)
  y_BLD, d_params, _, stats = run(config, params, u_BLD, _ids(), dy_BLD)
  weights, u_TD, dy_TD = _weights(params, 0), *(exact(x).reshape(-1, D) for x in (u_BLD, dy_BLD))
  # The last two of the ten tokens are padding: both take the experts that would be next.
  experts_TK = np.array([[2 * min(t, 8) % E, (2 * min(t, 8) + 1) % E] for t in range(10)])
  routes = [oracles.route(u_D, weights.centroids_DE, k) for u_D in u_TD]
  gates_TK = np.array([gates for gates, _, _ in routes])
  y_TD = oracles.routed_ffn(u_TD, gates_TK, experts_TK, weights.routed)
  _, d_gates_TK, d_experts = oracles.routed_ffn_gradients(
    u_TD, gates_TK, experts_TK, weights.routed, dy_TD
  )
  d_centroids_DE = np.zeros((D, E))
  for t, (gates, own, affinities) in enumerate(routes):
    for gate, i, d_gate in zip(gates, own, d_gates_TK[t], strict=True):
      d_logits_E = d_gate * gate * ((np.arange(E) == i) - affinities)
      d_centroids_DE += np.outer(u_TD[t], d_logits_E)
  computed = _weights(d_params, 0)
  assert_close(y_BLD.reshape(-1, D), y_TD, 1e-5, 'output')
  assert_close(computed.centroids_DE, d_centroids_DE, 1e-5, 'd centroids')
  assert_close(list(computed.routed), list(d_experts), 1e-5, 'd experts')
  loads_E = np.asarray(stats.counts_BE).sum(axis=0)
  assert loads_E.sum() == 8 * k and loads_E.max() - loads_E.min() == 1


def test_equals_every_expert_computed_densely():
  """The truth is Σ_e gate_e · FFN_e(u) over all experts, with gates of zero where not chosen, by
  plain einsums and autodiff.
  """
  config = small_config(**{'moe.num_shared_experts': 0})
  params, u_BLD, dy_BLD = _params(0), _normal(B, L, D, seed=1), _normal(B, L, D, seed=2)

  @jax.jit
  def dense(params, u_BLD):
    affinities_BLE = jax.nn.softmax(u_BLD @ params['router']['experts'])
    least_BL1 = jnp.sort(affinities_BLE)[..., -config.moe.experts_per_token][..., None]
    gates_BLE = jnp.where(affinities_BLE >= least_BL1, affinities_BLE, 0)
    w = params['experts']
    hidden = jax.nn.silu(jnp.einsum('bld,edf->blef', u_BLD, w['gate'])) * jnp.einsum(
      'bld,edf->blef', u_BLD, w['up']
    )
    return jnp.einsum('blef,efd,ble->bld', hidden, w['down'], gates_BLE)

  truth, pull = jax.vjp(dense, params, u_BLD)
  y_BLD, d_params, du_BLD, _ = run(config, params, u_BLD, _ids(), dy_BLD)
  assert_close((y_BLD, d_params, du_BLD), (truth, *pull(dy_BLD)), 1e-5)


@pytest.mark.parametrize('router', ['hash', 'softmax'])
def test_a_dense_ffn_copied_into_every_expert(router):
  """The layer is that FFN times the sum of the gates: here one, from the hash router's gate of one
  or from a softmax over all K = E experts.
  """
  k = 1 if router == 'hash' else E
  config = small_config(
    **{'moe.router': router, 'moe.experts_per_token': k, 'moe.num_shared_experts': 0}
  )
  dense = {name: w[0] for name, w in _params(0)['experts'].items()}
  params = {'experts': {name: np.stack([w] * E) for name, w in dense.items()}}
  if router == 'softmax':
    params['router'] = _params(0)['router']
  u_BLD, dy_BLD = _normal(B, L, D, seed=1), _normal(B, L, D, seed=2)
  y_BLD, d_params, du_BLD, _ = run(config, params, u_BLD, _ids(), dy_BLD)
  truth = run_mlp(config, dense, u_BLD, dy_BLD)
  d_dense = jax.tree.map(lambda w: w.sum(axis=0), d_params['experts'])
  assert_close((y_BLD, d_dense, du_BLD), truth, 2e-6)


def test_softmax_gates_scale_a_copied_ffn_by_their_sum():
  config = small_config(**{'moe.num_shared_experts': 0})
  dense = {name: w[0] for name, w in _params(0)['experts'].items()}
  params = {
    'experts': {name: np.stack([w] * E) for name, w in dense.items()},
    'router': _params(0)['router'],
  }
  u_BLD, dy_BLD = _normal(B, L, D, seed=1), _normal(B, L, D, seed=2)
  y_BLD = run(config, params, u_BLD, _ids(), dy_BLD)[0]
  centroids = exact(params['router']['experts'])
  gate_sums = [[sum(oracles.route(u_D, centroids, 2)[0]) for u_D in row] for row in exact(u_BLD)]
  dense_y_BLD = exact(run_mlp(config, dense, u_BLD, dy_BLD)[0])
  assert_close(y_BLD, np.array(gate_sums)[..., None] * dense_y_BLD, 2e-6)


def test_without_routed_experts_it_is_the_shared_ffn():
  config = small_config(
    **{
      'moe.num_experts': 0,
      'moe.experts_per_token': 0,
      'moe.num_shared_experts': 1,
      'moe.expert_balance_weight': 0.0,
    }
  )
  shared = {name: w[0] for name, w in _params(0)['experts'].items()}
  u_BLD, dy_BLD = _normal(B, L, D, seed=1), _normal(B, L, D, seed=2)
  y_BLD, d_params, du_BLD, stats = run(config, {'shared': shared}, u_BLD, _ids(), dy_BLD)
  assert stats is None
  assert_close((y_BLD, d_params['shared'], du_BLD), run_mlp(config, shared, u_BLD, dy_BLD), 1e-6)


def test_the_layer_runs_the_implementation_of_the_config(monkeypatch):
  def refuse(*arguments):
    raise NotImplementedError('tiled ran')

  monkeypatch.setattr(tiled, 'routed_ffn', refuse)
  args = _params(1), _normal(B, L, D), _ids(), _normal(B, L, D)
  trace = lambda name: jax.make_jaxpr(run.__wrapped__, static_argnums=0)(
    small_config(**{'ops.implementation': name}), *args
  )
  trace('reference')
  for name in ('auto', 'xla'):
    with pytest.raises(NotImplementedError, match='tiled ran'):
      trace(name)


def _telemetry(config, gates=None):
  layer = MoELayer(config)
  params = {'params': _params(1, config.moe.num_units)}
  if gates is not None:
    params['params']['router']['experts'][:] = gates
  ids_BL = _ids()
  apply = jax.jit(lambda *operands: layer.apply(params, *operands))
  y_BLD, aside = apply(_normal(B, L, D, seed=1), ids_BL, ids_BL >= 0)
  return y_BLD, aside.telemetry


def test_the_width_that_tokens_go_through_does_not_overflow():
  """With many wide experts, tokens times width exceeds int32."""
  config = small_config(**{'moe.wide_experts': 5, 'moe.wide_factor': 4})
  _, plain = _telemetry(config)
  assert F * 2 <= float(plain['routed_width'].value) <= F * 8
  tokens, counts_BE = 2**23, np.full((1, E), 2**23 // E * 2, np.int32)
  moe = dataclasses.replace(config.moe, d_expert=1408)
  found = float(routed_width(jnp.asarray(counts_BE), jnp.int32(tokens), moe))
  assert found == pytest.approx(2 * 1408 * (5 * 4 + 1) / 6, rel=1e-5)


@pytest.mark.parametrize('changed', [{}, {'moe.wide_experts': 2}, {'moe.gate_mass': 0.9}])
def test_gates_that_are_not_finite_show(changed):
  y_BLD, _ = _telemetry(small_config(**changed), gates=np.nan)
  assert np.isnan(y_BLD).all()
