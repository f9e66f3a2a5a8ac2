"""The pipeline trains as one device does, and follows the 1F1B schedule,
in which only neighbouring stages wait for each other.
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
  """Everything runs once, on the tick after what it needs; stage s keeps at most S − s inputs;
  the schedule takes 2 (M + S − 1) ticks.
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
    # An input's slot is free again before the next input arrives in it.
    if m + stages < microbatches:
      assert backward[stage, m] < forward[stage, m + stages]
  assert max(backward.values()) == ticks - 1


@pytest.mark.parametrize('stages', [2, 3, 4, 8])
def test_partners(stages):
  """Each tick's result goes to the stage that uses it at the next tick,
  and no stage receives from two.
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
