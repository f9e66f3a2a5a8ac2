"""A pipeline's stages wait as long as with 1F1B, which is simulated here event by event."""

import dataclasses

import numpy as np
import pytest

from moe.planner.stages import Stage, elapsed, stage_costs, stretch
from tests.small import small_config

# A layer: 2 · (2 · 16 · 8 · (2 + 2) + 16 · 6 (router) + 3 · 16 · 8 · 3) + 4 · 12 · 16. The head:
# 2 · 32 · 16. A dense layer with d_ff 8: like a layer, but 2 · 3 · 16 · 8 for its FFN, no router.
LAYER, HEAD, DENSE = 2 * (1024 + 96 + 1152) + 768, 1024, 2 * (1024 + 384) + 768


def small(layers, microbatches, **more):
  return small_config(
    **{'model.num_layers': layers, 'train.microbatches': microbatches, 'data.batch_size': 80} | more
  )


def one_forward_one_backward(costs, microbatches):
  """Returns how long 1F1B takes when stages wait only for what they need: stage s does S − s
  forwards, then a backward and a forward in turn.
  """
  stages = len(costs)
  orders = []
  for s in range(stages):
    warm = min(microbatches, stages - s)
    order = [('forward', m) for m in range(warm)]
    for m in range(microbatches):
      order += [('backward', m)] + [('forward', m + warm)] * (m + warm < microbatches)
    orders.append(order)
  free, done = [0.0] * stages, {}
  while any(orders):
    for s, order in enumerate(orders):
      while order:
        which, m = order[0]
        neighbour = s - 1 if which == 'forward' else s + 1
        if 0 <= neighbour < stages and (which, neighbour, m) not in done:
          break
        began = max(free[s], done.get((which, neighbour, m), 0.0))
        free[s] = done[which, s, m] = began + getattr(costs[s], which)
        order.pop(0)
  return max(free)


@pytest.mark.parametrize('stages', [1, 2, 3, 4, 8])
@pytest.mark.parametrize('microbatches', [1, 2, 5, 16])
def test_stages_wait_no_longer_than_with_1f1b(stages, microbatches):
  generator = np.random.default_rng(stages)
  for _ in range(20):
    costs = [Stage(*map(float, generator.integers([0, 1], [5, 20]))) for _ in range(stages)]
    assert elapsed(costs, microbatches) == one_forward_one_backward(costs, microbatches)
  assert elapsed([Stage(1, 4)] * stages, microbatches) == 5 * (microbatches + stages - 1)


def test_two_stages_by_hand():
  """S = 2, M = 2: forward 0 ends at 1, and backward 0 on the last stage at 4. Backward 0 on the
  first and 1 on the last run together until 7; backward 1 on the first ends at 10.
  """
  assert elapsed([Stage(1, 3), Stage(0, 3)], 2) == 1 + 3 * 3


@pytest.mark.parametrize(('remat', 'backward'), [('none', 3), ('full', 4)])
def test_what_stages_have(remat, backward):
  even = stage_costs(small(4, 4, **{'model.remat': remat}), 2)
  assert even == [(2 * LAYER, 2 * backward * LAYER), (0, 2 * backward * LAYER + 3 * HEAD)]
  dense = {'model.remat': remat, 'model.num_dense_layers': 1, 'model.d_ff': 8}
  uneven = stage_costs(small(6, 4, **dense), 4)  # 2, 2, 1 and 0 of 5
  blocks = [2 * LAYER + DENSE, 2 * LAYER, LAYER, 0]
  assert uneven == [(n, n * backward) for n in blocks[:3]] + [(0, 3 * HEAD)]


def test_stretch():
  config = small(64, 80)
  assert stretch(config, 1) == pytest.approx(1)
  # The head costs next to nothing. The first stage does two forwards, waits from 2 until the last
  # has done a backward, at 1 + 3, and has 80 backwards and 78 forwards left. The divisor is the
  # mean stage's work: M · (f + b) on the first, and no f on the last.
  assert stretch(config, 2) == pytest.approx((1 + 81 * 3 + 78) / (80 * (4 + 3) / 2), rel=0.005)
  assert stretch(
    dataclasses.replace(config, model=dataclasses.replace(config.model, remat='full')), 2
  ) == (pytest.approx((1 + 81 * 4 + 78) / (80 * (5 + 4) / 2), rel=0.005))
