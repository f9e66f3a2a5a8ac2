"""The dispatch plan: an exact permutation, compared exactly."""

import jax
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from moe.ops.dispatch_plan import make_plan, make_tiles
from tests.moe.ops.routing import PATTERNS, routing

make = jax.jit(make_plan, static_argnums=1)

SHAPES = [(1, 5, 2), (7, 1, 1), (7, 4, 4), (13, 6, 1), (33, 64, 6)]


@given(st.sampled_from(SHAPES), st.sampled_from(PATTERNS), st.integers(0, 10_000))
def test_sorted_by_expert_and_stable(shape, pattern, seed):
  tokens, num_experts, k = shape
  experts_TK = routing(seed, tokens, num_experts, k, pattern)
  plan = jax.tree.map(np.asarray, make(experts_TK, num_experts))

  # Rows are sorted by expert, then by token. A token's experts are distinct.
  expected = [(e, t) for e in range(num_experts) for t in range(tokens) if e in experts_TK[t]]
  assert plan.token_R.tolist() == [t for _, t in expected]
  for t in range(tokens):
    for choice in range(k):
      assert plan.row_TK[t, choice] == expected.index((experts_TK[t, choice], t))
  assert plan.group_sizes_E.tolist() == [
    sum(e == expert for e, _ in expected) for expert in range(num_experts)
  ]
  assert plan.group_offsets_E.tolist() == [
    sum(e < expert for e, _ in expected) for expert in range(num_experts)
  ]
  assert (plan.experts_TK == experts_TK).all()
  assert all(x.dtype == np.int32 for x in plan)


def test_by_hand():
  # Tokens a b c choose experts (2, 0) (0, 1) (2, 1):
  # rows are a→0 b→0 | b→1 c→1 | a→2 c→2, and expert 3 is empty.
  plan = make(np.array([[2, 0], [0, 1], [2, 1]]), 4)
  assert plan.token_R.tolist() == [0, 1, 1, 2, 0, 2]
  assert plan.row_TK.tolist() == [[4, 0], [1, 2], [5, 3]]
  assert plan.group_sizes_E.tolist() == [2, 2, 2, 0]
  assert plan.group_offsets_E.tolist() == [0, 2, 4, 6]


@given(
  # (groups, rows): each shape compiles, so there are few of them, and many ways to cut the rows
  # into groups.
  shape=st.sampled_from([(1, 33), (9, 100)]),
  cuts=st.lists(st.integers(0, 100), min_size=9, max_size=9),
  rows_per_tile=st.sampled_from([1, 4, 16]),
  aligned=st.booleans(),
  visit_empty=st.booleans(),
)
def test_tiles_hold_every_row_of_every_group_once(shape, cuts, rows_per_tile, aligned, visit_empty):
  """Rows after the last group are in no tile."""
  num_groups, num_rows = shape
  ends = sorted(min(cut, num_rows) for cut in cuts[:num_groups])
  sizes = np.diff([0, *ends]).tolist()
  tiles = make_tiles(
    np.array(sizes, np.int32), num_rows, rows_per_tile, aligned=aligned, visit_empty=visit_empty
  )
  tiles = jax.tree.map(np.asarray, tiles)
  used = range(int(tiles.count))
  rows = [(tiles.group_U[n], r) for n in used for r in range(tiles.start_U[n], tiles.stop_U[n])]
  group_of_row = np.repeat(np.arange(len(sizes)), sizes)
  assert rows == [(group_of_row[r], r) for r in range(sum(sizes))]  # in order, so tiles are too
  for n in used:
    start, stop = int(tiles.start_U[n]), int(tiles.stop_U[n])
    assert stop - start <= rows_per_tile
    if aligned and stop > start:
      assert start // rows_per_tile == (stop - 1) // rows_per_tile
  empty = [tiles.group_U[n] for n in used if tiles.start_U[n] == tiles.stop_U[n]]
  assert empty == ([e for e, size in enumerate(sizes) if size == 0] if visit_empty else [])
  assert len(tiles.group_U) == -(-num_rows // rows_per_tile) + len(sizes)
  assert (tiles.start_U[int(tiles.count) :] == num_rows).all()
  assert (tiles.stop_U[int(tiles.count) :] == num_rows).all()
