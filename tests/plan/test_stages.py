"""How long a pipeline's stages wait, against schedules worked out by hand."""

import dataclasses

import pytest

from launch.plan.stages import Stage, elapsed, stage_costs, stretch
from tests.small import small_config

# A layer: 2 · (2 · 16 · 8 · (2 + 2) + 16 · 6 (router) + 3 · 16 · 8 · 3) + 4 · 12 · 16; the head: 2 · 32 · 16; a dense
# layer with d_ff 8: as a layer, but 2 · 3 · 16 · 8 for its FFN and no router.
LAYER, HEAD, DENSE = 2 * (1024 + 96 + 1152) + 768, 1024, 2 * (1024 + 384) + 768


def small(layers, microbatches, **more):
  return small_config(**{'model.num_layers': layers, 'train.microbatches': microbatches, 'data.batch_size': 80} | more)


@pytest.mark.parametrize('stages', [2, 3, 4, 8])
@pytest.mark.parametrize('microbatches', [1, 2, 5, 16])
@pytest.mark.parametrize('backward', [3, 4])
def test_a_microbatch_takes_two_backwards_and_not_a_forward_and_a_backward(stages, microbatches, backward):
  costs = [Stage(1, backward)] * (stages - 1) + [Stage(0, backward)]
  assert elapsed(costs, microbatches) == stages - 1 + (2 * microbatches + stages - 2) * backward


def test_two_stages_by_hand():
  """S = 2, M = 2: forward 0 (until 1); then backward 0 on the last, on the first, backward 1 on both, of 3 each."""
  assert elapsed([Stage(1, 3), Stage(0, 3)], 2) == 1 + 4 * 3


def test_far_stages_do_not_wait_for_one_another_but_neighbours_do():
  """Only the first and the last of four are slow: a microbatch takes the slow one's backward and its neighbour's."""
  costs = [Stage(1, 6), Stage(1, 3), Stage(1, 3), Stage(0, 6)]
  assert elapsed(costs, 101) - elapsed(costs, 100) == 6 + 3


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
  # The head is next to nothing: 3 · 2 · 80 of the time of (M · (f + b), and one f less) on the mean.
  assert stretch(config, 2) == pytest.approx((1 + 3 * 160) / (80 * (4 + 3) / 2), rel=0.005)
  assert stretch(dataclasses.replace(config, model=dataclasses.replace(config.model, remat='full')), 2) == (
    pytest.approx((1 + 4 * 160) / (80 * (5 + 4) / 2), rel=0.005)
  )
