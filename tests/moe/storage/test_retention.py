"""Which checkpoints stay: the last ones, and those of the best finite losses, over restarts too."""

import json
import math

import pytest

from moe.storage.retention import FILE, HeldOutLosses, Kept
from tests.small import small_config

NAN, INF = math.nan, math.inf


def kept_after(folder, starts, last=1, best=1):
  """Returns the steps left after the saves [[(step, loss)], …], one list per start of the run.
  Deletes after each save, as Orbax does.
  """
  config = small_config(**{'checkpoint.keep_last': last, 'checkpoint.keep_best': best}).checkpoint
  steps = []
  for saves in starts:
    losses = HeldOutLosses(folder, writes=True)
    kept = Kept(config, losses)
    for step, loss in saves:
      losses.note(step, loss, {*steps, step})
      steps = sorted(kept.of({*steps, step}))
  return steps


@pytest.mark.parametrize(
  'losses, wanted',
  [
    ([2, NAN, 3, 4], [1, 4]),
    ([NAN, 2, 3, 4], [2, 4]),
    ([3, 2, NAN, 4], [2, 4]),
    ([2, 3, NAN, NAN], [1, 4]),
    ([INF, 2, -INF, 4], [2, 4]),
    ([NAN, NAN, NAN], [3]),
    ([2, 2, 2], [1, 3]),
    ([4, 3, 2], [3]),
  ],
)
def test_a_loss_that_is_not_finite_never_counts_as_best(tmp_path, losses, wanted):
  assert kept_after(tmp_path, [list(enumerate(losses, start=1))]) == wanted


@pytest.mark.parametrize(
  'starts, wanted',
  [
    ([[(1, 4.0), (2, 1.0)], [(3, 2.0), (4, 3.0)], [(5, 3.0), (6, 2.5)]], [2, 6]),
    # A stopped run saves without a loss.
    ([[(1, 4.0), (2, None)], [(3, 3.0), (4, None)], [(5, 2.0), (6, None)]], [5, 6]),
    # A killed run reaches a step again.
    ([[(1, 2.0), (2, 5.0)], [(2, 1.0), (3, 3.0)]], [2, 3]),
    # A best checkpoint that was damaged and set aside is forgotten.
    ([[(1, 1.0)], [(1, None), (2, 3.0), (3, 4.0)]], [2, 3]),
  ],
)
def test_the_best_is_remembered_over_restarts_and_no_more_than_asked_for_stay(
  tmp_path, starts, wanted
):
  assert kept_after(tmp_path, starts) == wanted


def test_numbers_of_last_and_best_are_kept_apart(tmp_path):
  saves = [(step, loss) for step, loss in enumerate([5, 1, 4, 2, 3, 6, 7], start=1)]
  assert kept_after(tmp_path, [saves], last=2, best=3) == [2, 4, 5, 6, 7]


def test_the_file_is_strict_json(tmp_path):
  kept_after(tmp_path, [[(1, 2.5), (2, NAN)]])
  refuse = lambda word: pytest.fail(f'{word} is no JSON')
  stored = json.loads((tmp_path / FILE).read_text(), parse_constant=refuse)
  assert stored == {'1': 2.5, '2': None}


@pytest.mark.parametrize(
  'damage', [None, b'', b'{"1": ', b'[]', b'\xff', b'{"1": NaN}', b'{"a": 1}', b'{"1": "x"}']
)
def test_without_a_whole_file_the_losses_are_those_that_were_logged(tmp_path, damage):
  if damage is not None:
    (tmp_path / FILE).write_bytes(damage)
  logged = b'{"step": 1, "held_out_loss": 2.0}\n\xff "held_out_loss"\n{"step": 2}\n'
  (tmp_path / 'metrics.jsonl').write_bytes(logged + b'{"step": 3, "held_out_loss": null}\n')
  assert HeldOutLosses(tmp_path, writes=False).best([1, 2, 3], 2) == {1}
