"""Sigmoid and softmax routers with biases, limits and gates of several kinds, against loops."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from moe import accounting, analysis
from moe.convert.layouts import LAYOUTS
from moe.errors import UserError
from moe.model import init_params
from moe.parameters import decayed
from moe.routers import ROUTERS, Forced, Probe, balancing
from moe.routers.base import holds_mass
from moe.routers.scored import within_groups
from tests import oracles
from tests.oracles import exact
from tests.small import assert_close, packed_batch, small_config, small_params

pytestmark = pytest.mark.usefixtures('quick_compile')

E, D, ROWS, LENGTH = 6, 16, 3, 20


@functools.partial(jax.jit, static_argnums=(0, 4))
def routed(config, params, u_BLD, is_token_BL, probe=None):
  router = ROUTERS[config.moe.router](config, probe or Probe())
  ids_BL = is_token_BL.astype(np.int32)
  routing = router.apply({'params': params}, u_BLD, ids_BL, is_token_BL)
  return routing, router.telemetry(routing.stats)


def batch(seed=0):
  generator = np.random.default_rng(seed)
  u_BLD = generator.normal(size=(ROWS, LENGTH, D)).astype(np.float32)
  is_token_BL = generator.random((ROWS, LENGTH)) < 0.8
  is_token_BL[-1] = False  # a row of padding
  params = {
    'experts': generator.normal(size=(D, E)).astype(np.float32) / 3,
    'bias': generator.normal(size=E).astype(np.float32) / 10,
  }
  return u_BLD, is_token_BL, params


def affinities_of(kind, u_D, centroids_DE):
  logits = [sum(u_D * centroids_DE[:, e]) for e in range(E)]
  return oracles.softmax(logits) if kind == 'softmax' else list(map(oracles.sigmoid, logits))


@pytest.mark.parametrize('kind', ['softmax', 'sigmoid'])
@pytest.mark.parametrize(
  'changed',
  [
    {},
    {'moe.normalize_gates': True, 'moe.gate_scale': 2.5},
    {'moe.balancing': 'bias'},
    {'moe.balancing': 'quantile', 'moe.device_groups': 3, 'moe.device_limit': 2},
    {'moe.device_groups': 3, 'moe.device_limit': 1},
  ],
  ids=lambda changed: '-'.join(key.partition('.')[2] for key in changed) or 'plain',
)
def test_choices_gates_and_sums(kind, changed):
  k = 2
  config = small_config(**{'moe.router': kind, 'moe.experts_per_token': k} | changed)
  moe, (u_BLD, is_token_BL, params) = config.moe, batch()
  if moe.balancing == 'none':
    del params['bias']
  (gates_BLK, experts_BLK, stats), telemetry = routed(config, params, u_BLD, is_token_BL)
  bias_E = exact(params.get('bias', np.zeros(E)))
  counts, sums, excess = np.zeros((ROWS, E)), np.zeros((ROWS, E)), []
  for b, t in np.ndindex(ROWS, LENGTH):
    affinities = affinities_of(kind, exact(u_BLD[b, t]), exact(params['experts']))
    limits = (moe.device_groups, moe.device_limit) if moe.device_limit else (1, 0)
    chosen, cutoff = oracles.chosen_with_bias(affinities, bias_E, k, *limits)
    assert experts_BLK[b, t].tolist() == chosen
    gates = np.array([affinities[e] for e in chosen])
    gates = gates / gates.sum() if moe.normalize_gates else gates
    assert_close(gates_BLK[b, t], gates * moe.gate_scale, 1e-5)
    if is_token_BL[b, t]:
      counts[b, chosen] += 1
      sums[b] += np.array(affinities) / sum(affinities)
      excess.append([s - cutoff for s in affinities])
  assert (stats.counts_BE == counts).all()
  assert_close(stats.probability_sums_BE, sums, 1e-5)
  if moe.balancing != 'quantile':
    assert stats.excess_BEH is None and not telemetry
    return
  assert (stats.excess_BEH.sum(axis=-1) == is_token_BL.sum(axis=1)[:, None]).all()
  measured = {f'{balancing.EXCESS}_N': telemetry[balancing.EXCESS].value[None]}
  moved_E = balancing.moved(params['bias'][None], measured, config)[0]
  true_E = -oracles.quantile_thresholds(excess, k / E)
  # A bin is a twenty-fifth of its distance from 0 wide. Any threshold between two neighbouring
  # values is right.
  gaps_E = [np.diff(sorted(values)).max() for values in np.transpose(excess)]
  allowed_E = 0.05 * np.abs(true_E) + 2e-4 + np.minimum(gaps_E, 0.05)
  assert (np.abs(moved_E - (true_E - true_E.mean())) <= allowed_E + allowed_E.mean()).all()


def test_softmax_over_the_chosen_is_softmax_with_gates_that_add_up_to_one():
  config = small_config(**{'moe.normalize_gates': True, 'moe.experts_per_token': 3})
  u_BLD, is_token_BL, params = batch()
  gates_BLK, experts_BLK, _ = routed(config, params, u_BLD, is_token_BL)[0]
  for b, t in np.ndindex(ROWS, LENGTH):
    logits = exact(u_BLD[b, t]) @ exact(params['experts'])
    assert_close(gates_BLK[b, t], oracles.softmax(logits[experts_BLK[b, t]]), 1e-5)


def test_loss_free_steps():
  config = small_config(**{'moe.balancing': 'bias', 'moe.bias_update_rate': 0.01})
  generator = np.random.default_rng(0)
  bias_NE, true_NE = np.zeros((2, E), np.float32), np.zeros((2, E))
  for _ in range(5):
    counts_NE = generator.integers(0, 9, (2, E)).astype(np.int32)
    bias_NE = balancing.moved(bias_NE, {'expert_counts_NE': counts_NE}, config)
    true_NE = np.array(
      [oracles.loss_free_step(*pair, 0.01) for pair in zip(true_NE, counts_NE, strict=True)]
    )
  assert_close(bias_NE, true_NE, 1e-5)


@pytest.mark.parametrize('kind', ['softmax', 'sigmoid'])
def test_quantiles_balance_a_batch_in_few_steps(kind):
  """The tokens of the batch prefer the same experts."""
  config = small_config(
    **{'moe.router': kind, 'moe.balancing': 'quantile', 'moe.experts_per_token': 2}
  )
  u_BLD, _, params = batch(1)
  u_BLD[..., 0] += 3
  params['bias'] *= 0
  is_token_BL, loads = np.ones((ROWS, LENGTH), bool), []
  for _ in range(8):
    routing, telemetry = routed(config, params, u_BLD, is_token_BL)
    counts_E = routing.stats.counts_BE.sum(axis=0)
    loads.append(float(counts_E.max() / counts_E.mean()))
    measured = {f'{balancing.EXCESS}_N': telemetry[balancing.EXCESS].value[None]}
    params['bias'] = np.asarray(balancing.moved(params['bias'][None], measured, config)[0])
  assert loads[0] > 1.8 and min(loads[1:]) < 1.25


def test_no_gradient_by_way_of_the_choice():
  config = small_config(**{'moe.router': 'sigmoid', 'moe.balancing': 'bias'})
  u_BLD, is_token_BL, params = batch()
  loss = lambda params: routed(config, params, u_BLD, is_token_BL)[0].gates_BLK.sum()
  gradient = jax.grad(loss)(params)
  assert not gradient['bias'].any() and gradient['experts'].any()


def test_groups_by_hand():
  """Of the groups (0, 1), (2, 3), (4, 5), the two with the best experts are kept."""
  ranked = np.array([[[0.1, 0.5, 0.3, 0.2, 0.4, 0.0]]], np.float32)
  kept = np.isfinite(within_groups(ranked, 3, 2))
  assert kept.tolist() == [[[True, True, False, False, True, True]]]


def test_groups_are_chosen_of_what_a_mask_leaves():
  """A loop removes the best expert, chooses the groups with the best of the rest, then the K."""
  limit = {'moe.device_groups': 3, 'moe.device_limit': 2}
  config = small_config(**{'moe.router': 'sigmoid', 'moe.experts_per_token': 2} | limit)
  u_BLD, is_token_BL, params = batch()
  del params['bias']
  found_BLK = routed(config, params, u_BLD, is_token_BL, Probe(masked=1))[0].experts_BLK
  moved = 0
  for b, t in np.ndindex(ROWS, LENGTH):
    affinities = affinities_of('sigmoid', exact(u_BLD[b, t]), exact(params['experts']))
    best = max(range(E), key=lambda e: affinities[e])
    left = {e: affinities[e] for e in range(E) if e != best}
    by_group = sorted(range(3), key=lambda g: -max(left.get(2 * g, 0), left.get(2 * g + 1, 0)))
    within = [e for e in left if e // 2 in by_group[:2]]
    assert found_BLK[b, t].tolist() == sorted(within, key=lambda e: -left[e])[:2]
    moved += best // 2 not in by_group[:2]
  assert moved  # some groups would have been others with the masked expert


def test_all_experts_may_be_asked_for_of_a_quantile_router():
  config = small_config(**{'moe.balancing': 'quantile'})
  hidden, _ = analysis.forward(
    config, small_params(config), packed_batch(config), analysis.Intervention(experts_per_token=6)
  )
  assert np.isfinite(hidden).all()


def test_the_bias_is_a_parameter_that_is_counted_and_not_decayed():
  config = small_config(**{'moe.balancing': 'bias'})
  accounting.check(config, small_params(config))
  assert decayed(config)['moe_blocks']['moe']['router'] == {'bias': False, 'experts': True}
  plain = dataclasses.replace(config, moe=dataclasses.replace(config.moe, balancing='none'))
  shapes = jax.eval_shape(lambda: init_params(plain, jax.random.key(0)))
  assert 'bias' not in shapes['moe_blocks']['moe']['router']


@pytest.mark.parametrize(
  ('changed', 'words'),
  [
    ({'moe.device_groups': 3, 'moe.device_limit': 4}, 'is more than moe.device_groups=3'),
    (
      {'moe.device_groups': 3, 'moe.device_limit': 1, 'moe.experts_per_token': 3},
      'moe.device_limit=1 groups of 2 experts are fewer than moe.experts_per_token=3',
    ),
    ({'moe.router': 'hash', 'moe.balancing': 'bias'}, 'does not go with moe.router=hash'),
    ({'moe.router': 'hash', 'moe.gate_mass': 0.5}, 'does not go with moe.router=hash'),
    ({'moe.shared_gate': True, 'moe.num_shared_experts': 0}, 'there is nothing to weight'),
    ({'moe.gate_mass': 0.5, 'ops.force_balanced_routing': True}, 'have no load to balance'),
    (
      {'moe.num_experts': 0, 'moe.experts_per_token': 0, 'moe.balancing': 'bias'},
      "moe.balancing='bias': moe.num_experts=0, nothing is routed",
    ),
    ({'moe.wide_experts': 7}, 'is more than moe.num_experts=6'),
    ({'moe.wide_experts': 3, 'moe.device_groups': 3}, 'does not go with moe.device_groups=3'),
    ({'moe.balancing': 'quantile', 'moe.experts_per_token': 6}, 'nothing is chosen'),
  ],
)
def test_contradictions(changed, words):
  with pytest.raises(UserError, match=words):
    small_config(**changed)


def test_wide_experts_may_be_grouped_where_all_are_as_wide():
  assert small_config(**{'moe.wide_experts': 6, 'moe.device_groups': 3})


@pytest.mark.parametrize(
  ('key', 'value'),
  [
    *(('normalize_gates', True), ('gate_scale', 2.5), ('balancing', 'bias'), ('router', 'sigmoid')),
    *(('shared_gate', True), ('gate_mass', 0.5), ('wide_experts', 2)),
  ],
)
def test_what_other_programs_would_not_read_is_not_exported(key, value):
  config = small_config(**{f'moe.{key}': value})
  with pytest.raises(UserError, match=f'moe.{key}={value!r}: in the layout deepseek'):
    LAYOUTS['deepseek'].to_json(config)


@pytest.mark.parametrize('changed', [{}, {'moe.balancing': 'bias'}, {'moe.normalize_gates': True}])
def test_a_token_takes_the_fewest_that_hold_the_mass_in_whatever_order(changed):
  """With a bias, choices are not in the order of their affinities. Forced to its own choices,
  a token takes the same experts again.
  """
  config = small_config(**{'moe.experts_per_token': 4, 'moe.gate_mass': 0.6} | changed)
  u_BLD, is_token_BL, params = batch()
  if config.moe.balancing == 'none':
    del params['bias']
  router = ROUTERS[config.moe.router](config)
  route = lambda forced: router.apply(
    {'params': params}, u_BLD, is_token_BL.astype(np.int32), is_token_BL, forced, method='route'
  )[0]
  own = route(None)
  counts = np.zeros((ROWS, E), int)
  for b, t in np.ndindex(ROWS, LENGTH):
    affinities = affinities_of('softmax', exact(u_BLD[b, t]), exact(params['experts']))
    chosen = [affinities[e] for e in own.experts_BLK[b, t]]
    taken, held = set(), 0.0
    for place in sorted(range(4), key=lambda place: -chosen[place]):
      if held < 0.6 * sum(chosen):
        taken.add(place)
        held += chosen[place]
    assert {k for k in range(4) if own.gates_BLK[b, t, k] > 0} == taken
    if is_token_BL[b, t]:
      counts[b, [own.experts_BLK[b, t, place] for place in taken]] += 1
  assert (own.stats.counts_BE == counts).all() and counts.sum() < 4 * is_token_BL.sum()
  for forced in (Forced(own.experts_BLK), Forced(own.experts_BLK, own.gates_BLK)):
    again = route(forced)
    assert (again.gates_BLK == own.gates_BLK).all()
    assert (again.stats.counts_BE == own.stats.counts_BE).all()


def test_a_token_takes_its_best_expert_where_no_affinity_holds_any_mass():
  """Sigmoids of large negative logits are exactly 0."""
  found = holds_mass(np.array([[[0.0, 0.0, 0.0], [0.0, 2.0, 1.0], [np.nan, 1.0, 0.5]]]), 0.5)
  assert found.tolist() == [[[True, False, False], [False, True, False], [True, True, True]]]
