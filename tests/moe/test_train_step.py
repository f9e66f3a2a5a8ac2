"""The training step: microbatches, AdamW with clipping, and non-finite steps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from moe.optimizer import OPTIMIZERS, hyperparameters
from moe.routers import ROUTERS
from moe.train_step import init_state, loss_and_gradients, make_train_step
from tests import oracles
from tests.small import assert_close, packed_batch, small_config, small_params, small_state

pytestmark = pytest.mark.usefixtures('quick_compile')

MOE = {
  'model.num_layers': 1,
  'moe.expert_balance_weight': 0.5,  # large, so that its errors show
  'moe.device_balance_weight': 0.5,
  'moe.device_groups': 3,
  'moe.router_z_weight': 0.1,
  'train.max_bad_steps': 2,
  'optimizer.clip_norm': 0.1,
  'optimizer.peak_lr': 0.01,
}
CONFIG = small_config(**MOE)


_compiled = jax.jit(loss_and_gradients, static_argnums=0)


def gradients(config, params, batch):
  """(gradients, metrics) as NumPy arrays, since indexing them compiles nothing."""
  return jax.device_get(_compiled(config, params, batch))


@pytest.mark.parametrize('scope', ['sequence', 'batch'])
def test_microbatches_change_nothing(scope):
  """Rows hold different numbers of tokens and targets, one of them none, so a plain mean over
  microbatches would be wrong.
  """
  config = lambda parts: small_config(
    **MOE
    | {'moe.balance_scope': scope, 'train.microbatches': parts, 'ops.implementation': 'reference'}
  )
  params, batch = small_params(config(1)), packed_batch(config(1), padding_row=True)
  expected, metrics = gradients(config(1), params, batch)
  parts = ('loss', 'loss/expert_balance', 'loss/device_balance', 'loss/router_z')
  assert float(metrics['objective']) == pytest.approx(
    sum(float(metrics[part]) for part in parts), rel=1e-6
  )
  assert all(float(metrics[part]) > 0 for part in parts)
  for parts in (2, 4):
    computed, others = gradients(config(parts), params, batch)
    assert_close(computed, expected, 1e-5, f'{parts} microbatches')
    assert_close(others, metrics, 1e-5, f'{parts} microbatches')


@pytest.fixture(scope='module')
def train_step():
  step = jax.jit(make_train_step(CONFIG), donate_argnums=0)
  return lambda state, batch: step(state, batch, hyperparameters(CONFIG))


def _poisoned(batch):
  return batch._replace(weights_BL=np.full_like(batch.weights_BL, np.inf))


def _numbers(state):
  return {name: int(getattr(state, name)) for name in ('step', 'bad_steps', 'bad_streak')}


def _copy(state):
  return jax.tree.map(lambda x: np.array(x), (state.params, state.optimizer_state))


def _same(a, b):
  return all((x == y).all() for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_steps_are_adamw_on_the_clipped_gradient(train_step):
  batches = [packed_batch(CONFIG, seed) for seed in range(3)]
  state, history, rates = small_state(CONFIG), [], []
  start = _copy(state)[0]
  for batch in batches:
    computed, _ = gradients(CONFIG, state.params, batch)
    norm = float(optax.tree.norm(computed))
    assert norm > 0.1
    history.append(
      jax.tree.map(lambda g, norm=norm: np.asarray(g, np.float64) * 0.1 / norm, computed)
    )
    state, metrics = train_step(state, batch)
    rates.append(float(metrics['learning_rate']))
    assert float(metrics['gradient_norm']) == pytest.approx(norm, rel=1e-4)  # before clipping
  assert rates == pytest.approx([0.001, 0.002, 0.003])  # warm-up over ten steps
  assert _numbers(state) == {'step': 3, 'bad_steps': 0, 'bad_streak': 0}
  compared = 0
  for path, now in jax.tree_util.tree_leaves_with_path(jax.device_get(state.params)):
    at = lambda tree, path=path: functools.reduce(lambda t, key: t[key.key], path, tree)
    decay = 0.0 if path[-1].key == 'scale' else 0.1
    for index in list(np.ndindex(now.shape))[:: max(1, now.size // 10)]:
      gradient = [float(at(g)[index]) for g in history]
      if min(map(abs, gradient)) < 1e-6:
        continue  # it is of rounding size, which Adam's quotient magnifies
      truth = oracles.adamw(
        float(at(start)[index]), gradient, rates, b1=0.9, b2=0.95, eps=1e-8, decay=decay
      )
      assert float(now[index]) == pytest.approx(truth, abs=2e-6), (path, index)
      compared += 1
  assert compared > 50


def test_training_on_one_batch_lowers_the_loss(train_step):
  state, batch, losses = small_state(CONFIG), packed_batch(CONFIG), []
  for _ in range(30):
    state, metrics = train_step(state, batch)
    losses.append(float(metrics['loss']))
  assert losses[-1] < losses[0] - 0.5


@pytest.mark.parametrize('where', ['weights', 'params'])
def test_a_non_finite_step_changes_nothing_and_is_counted(train_step, where):
  state, batch = small_state(CONFIG), packed_batch(CONFIG)
  state, _ = train_step(state, batch)
  if where == 'params':
    poisoned = {**state.params, 'head': state.params['head'].at[0, 0].set(jnp.nan)}
    state = state.replace(params=poisoned)
  before = _copy(state)
  state, metrics = train_step(state, batch if where == 'params' else _poisoned(batch))
  assert not np.isfinite(metrics['objective'])
  for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(_copy(state)), strict=True):
    assert old.tobytes() == new.tobytes()  # bit for bit, NaN too
  assert _numbers(state) == {'step': 2, 'bad_steps': 1, 'bad_streak': 1}
  assert (int(metrics['bad_steps']), int(metrics['bad_streak'])) == (1, 1)


def test_a_good_step_ends_the_streak_and_too_long_a_streak_halts(train_step):
  state, batch = small_state(CONFIG), packed_batch(CONFIG)
  for bad in (True, True, False):  # two in a row are allowed
    state, _ = train_step(state, _poisoned(batch) if bad else batch)
  assert _numbers(state) == {'step': 3, 'bad_steps': 2, 'bad_streak': 0}
  for _ in range(3):
    state, _ = train_step(state, _poisoned(batch))
  assert _numbers(state) == {'step': 6, 'bad_steps': 5, 'bad_streak': 3}
  before = _copy(state)
  state, _ = train_step(state, batch)  # a good step, but too late
  assert _same(before, _copy(state))
  assert _numbers(state)['bad_streak'] == 4


def test_the_state_is_donated_and_the_same_steps_give_the_same_bits(train_step):
  batch = packed_batch(CONFIG)
  results = []
  for _ in range(2):
    state = small_state(CONFIG)
    donated = jax.tree.leaves(state)
    for _ in range(3):
      state, _ = train_step(state, batch)
    assert all(leaf.is_deleted() for leaf in donated)
    results.append(_copy(state))
  assert _same(*results)


def test_routing_metrics(train_step):
  _, metrics = train_step(small_state(CONFIG), packed_batch(CONFIG))
  load_NE = np.asarray(metrics['expert_load_NE'])
  assert load_NE.shape == (1, 6)
  np.testing.assert_allclose(load_NE.mean(axis=1), 1, rtol=1e-6)
  np.testing.assert_allclose(metrics['max_vio_N'], load_NE.max(axis=1) - 1, rtol=1e-6)
  assert (np.asarray(metrics['dead_experts_N']) == (load_NE == 0).sum(axis=1)).all()
  assert ((metrics['router_entropy_N'] > 0) & (metrics['router_entropy_N'] < np.log(6))).all()


def test_the_implementation_changes_no_loss_beyond_rounding():
  """Compares 50 steps, each on new data, of the readable reference and of the implementation that
  this platform prefers.
  """
  programs, curves = [], []
  for implementation in ('reference', 'auto'):
    config = small_config(**{'ops.implementation': implementation})
    step = jax.jit(make_train_step(config), donate_argnums=0)
    state, losses = jax.jit(lambda config=config: init_state(config))(), []
    lowered = step.lower(state, packed_batch(config, 0), hyperparameters(config))
    programs.append(lowered.as_text())
    for seed in range(50):
      state, metrics = step(state, packed_batch(config, seed), hyperparameters(config))
      losses.append(metrics['loss'])
    curves.append(np.array(losses))
  assert programs[0] != programs[1]
  assert abs(curves[0] / curves[1] - 1).max() < 1e-5


@pytest.mark.parametrize('remat', ['full', 'dots', 'moe'])
def test_rematerialisation_keeps_the_plan(remat):
  """The counting sort runs over (T, E) = (48, 6) once a layer, in backward too."""

  def sorts(config):
    params, batch = small_params(config), packed_batch(config)
    lowered = jax.jit(lambda p, b: loss_and_gradients(config, p, b)).lower(params, batch)
    return sum(
      'call @cumsum' in line and '48x6xi32' in line for line in lowered.as_text().splitlines()
    )

  kept, plain = (small_config(**{'model.remat': it, 'model.unroll': 1}) for it in (remat, 'none'))
  assert sorts(kept) == sorts(plain) > 0


SWEPT = {
  'optimizer.peak_lr': 0.02,
  'optimizer.warmup_steps': 3,
  'optimizer.decay_at': (0.5, 0.7),
  'optimizer.decay_factor': 0.5,
  'optimizer.final_lr_fraction': 0.3,
  'optimizer.weight_decay': 0.0,
  'optimizer.clip_norm': 0.0,
  'train.num_steps': 7,
  'train.seed': 1,
  'train.max_bad_steps': 0,
  'data.seed': 1,
}


@pytest.mark.parametrize('schedule', ['step_decay', 'constant', 'cosine'])
@pytest.mark.parametrize('router', ROUTERS)
@pytest.mark.parametrize('optimizer', OPTIMIZERS)
def test_runs_that_differ_in_swept_numbers_share_a_program(optimizer, router, schedule):
  same = {'optimizer.name': optimizer, 'moe.router': router, 'optimizer.schedule': schedule}

  def program(config):
    shapes = jax.eval_shape(lambda: init_state(config))
    arguments = shapes, packed_batch(config), hyperparameters(config)
    return jax.jit(make_train_step(config)).lower(*arguments).as_text()

  assert program(small_config(**same)) == program(small_config(**same | SWEPT))
  other = small_config(**same, **{'optimizer.b1': 0.8})
  assert program(small_config(**same)) != program(other)


def test_the_seed_may_be_an_argument():
  config = small_config(**{'train.seed': 5})
  expected = jax.jit(lambda: init_state(config))()
  found = jax.jit(functools.partial(init_state, small_config()))(np.uint32(5))
  assert _same(expected, found)
