"""Schedules at the steps where they change, AdamW against a scalar loop, and clipping."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from moe.optimizer import clip, hyperparameters, learning_rate, make_optimizer
from tests import oracles
from tests.small import small_config


def _optimizer(**changes):
  return small_config(**{f'optimizer.{key}': value for key, value in changes.items()}).optimizer


PEAK = 1.08e-3


def _schedule(num_steps, **changes):
  """step → rate."""
  keys = {f'optimizer.{key}': value for key, value in changes.items()}
  config = small_config(**keys, **{'train.num_steps': num_steps})
  numbers = hyperparameters(config)
  return lambda step: learning_rate(config.optimizer.schedule, numbers, step)


@pytest.mark.parametrize(
  ('kind', 'share_of_peak'),
  [
    # 1000 steps, 100 of them warm-up: there, step s has (s + 1) hundredths of the peak rate.
    (
      'step_decay',
      {
        0: 0.01,
        49: 0.5,
        99: 1,
        100: 1,
        799: 1,
        800: 0.316,
        899: 0.316,
        900: 0.316**2,
        999: 0.316**2,
      },
    ),
    ('constant', {0: 0.01, 99: 1, 100: 1, 800: 1, 999: 1}),
    ('cosine', {0: 0.01, 99: 1, 324: 0.1 + 0.9 * (2 + 2**0.5) / 4, 549: 0.55, 999: 0.1, 1500: 0.1}),
  ],
)
def test_schedule(kind, share_of_peak):
  rate = _schedule(1000, schedule=kind, warmup_steps=100, peak_lr=PEAK)
  for step, share in share_of_peak.items():
    assert float(rate(jnp.int32(step))) == pytest.approx(share * PEAK, rel=1e-5), step


def test_schedule_without_warmup_or_decay():
  rate = _schedule(10, warmup_steps=0, decay_at=())
  assert [float(rate(step)) for step in (0, 9)] == pytest.approx([PEAK, PEAK])
  # The warm-up lasts to the end.
  cosine = _schedule(10, schedule='cosine', warmup_steps=10)
  assert float(cosine(9)) == pytest.approx(PEAK)


def test_paper_schedule_of_16b():
  """106,449 steps: × 0.316 at 80% and 90%."""
  rate = _schedule(106_449, warmup_steps=2000, peak_lr=4.2e-4)
  values = [float(rate(s)) / 4.2e-4 for s in (1999, 85_158, 85_159, 95_803, 95_804)]
  assert values == pytest.approx([1, 1, 0.316, 0.316, 0.316**2], rel=1e-5)


@pytest.mark.parametrize('kind', ['step_decay', 'cosine', 'constant'])
def test_a_fork_takes_the_last_steps_of_its_parents_schedule(kind):
  given = {'schedule': kind, 'warmup_steps': 100, 'peak_lr': PEAK}
  whole, rate = _schedule(1000, **given), _schedule(940, **given, start_step=60)
  for step in (0, 39, 40, 739, 740, 840, 939):
    assert rate(jnp.int32(60 + step)) == whole(jnp.int32(60 + step)), step


def test_adamw_decays_what_is_declared_to_be():
  config = _optimizer(weight_decay=0.1)
  decayed = {'norm': {'scale': False}, 'w': True, 'deep': {'gate': True}}
  optimizer = make_optimizer(config, decayed, config.weight_decay)
  start, gradients, rates = 0.7, [0.3, -0.2, 1e-4, 0.0], [1e-3, 2e-3, 3e-3, 1e-2]
  tree = lambda x: {
    'norm': {'scale': jnp.full(3, x)},
    'w': jnp.full((2, 3), x),
    'deep': {'gate': jnp.full(1, x)},
  }
  params = tree(start)
  state = optimizer.init(params)
  for g, rate in zip(gradients, rates):
    updates, state = optimizer.update(tree(g), state, params)
    params = jax.tree.map(lambda p, u, rate=rate: p - rate * u, params, updates)
  expected = lambda decay: oracles.adamw(
    start, gradients, rates, b1=0.9, b2=0.95, eps=1e-8, decay=decay
  )
  np.testing.assert_allclose(params['w'], expected(0.1), rtol=1e-6)
  np.testing.assert_allclose(params['deep']['gate'], expected(0.1), rtol=1e-6)
  np.testing.assert_allclose(params['norm']['scale'], expected(0.0), rtol=1e-6)
  assert abs(expected(0.1) - expected(0.0)) > 1e-4


def test_clip():
  gradients = {'a': jnp.array([3.0, 0.0]), 'b': jnp.array([[4.0]])}  # norm 5
  norm = optax.tree.norm(gradients)
  assert float(optax.tree.norm(clip(gradients, norm, 1.0))) == pytest.approx(1)
  np.testing.assert_allclose(clip(gradients, norm, 2.5)['a'], [1.5, 0])
  off = hyperparameters(small_config(**{'optimizer.clip_norm': 0.0})).clip_norm
  for loose in (5.0, 100.0, off):
    np.testing.assert_array_equal(clip(gradients, norm, loose)['b'], [[4.0]])
  zero = jax.tree.map(jnp.zeros_like, gradients)
  assert (clip(zero, optax.tree.norm(zero), 1.0)['a'] == 0).all()
