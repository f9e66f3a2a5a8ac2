"""The pipeline: the same training as one device, and 1F1B's schedule,
in which only neighbours wait for each other.
"""

import pytest

from moe.pipeline_parallel import partners, turn
from tests.moe.parallel.cases import GROUPS, check


@pytest.mark.parametrize('case', GROUPS['stages'])
def test_training(case):
  check('stages', case)


@pytest.mark.parametrize('stages', [1, 2, 3, 4, 8])
@pytest.mark.parametrize('microbatches', [1, 2, 5, 16])
def test_schedule(stages, microbatches):
  """Everything once, just after what it needs; at most S − s inputs kept on stage s;
  2 (M + S − 1) ticks in all.
  """
  forward, backward = {}, {}
  ticks = 2 * (microbatches + stages - 1)
  for stage in range(stages):
    for tick in range(ticks):
      is_backward, m = turn(tick, stage, stages)
      if 0 <= m < microbatches:
        done = backward if is_backward else forward
        assert (stage, m) not in done
        done[stage, m] = tick
  everything = {(stage, m) for stage in range(stages) for m in range(microbatches)}
  assert forward.keys() == backward.keys() == everything
  for stage, m in everything:
    if stage:
      assert forward[stage, m] == forward[stage - 1, m] + 1
      assert backward[stage - 1, m] == backward[stage, m] + 1
    kept = sum(
      forward[stage, n] <= forward[stage, m] < backward[stage, n] for n in range(microbatches)
    )
    assert kept <= stages - stage
    # The slot of an input is free again before the next one comes into it.
    if m + stages < microbatches:
      assert backward[stage, m] < forward[stage, m + stages]
  assert max(backward.values()) == ticks - 1


@pytest.mark.parametrize('stages', [2, 3, 4, 8])
def test_partners(stages):
  """Whatever is made at a tick comes to the stage that takes it up at the next,
  and no stage hears from two.
  """
  for tick in range(4 * stages):
    swaps = partners(tick % 2, stages)
    assert len({receiver for _, receiver in swaps}) == len(swaps)
    for sender in range(stages):
      is_backward, m = turn(tick, sender, stages)
      receiver = sender - 1 if is_backward else sender + 1
      assert ((sender, receiver) in swaps) == (0 <= receiver < stages)
      if 0 <= receiver < stages:
        assert turn(tick + 1, receiver, stages) == (is_backward, m)
