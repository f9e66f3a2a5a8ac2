"""Roofline times agree with arithmetic by hand."""

import itertools

import pytest

from moe.chips import CHIPS
from moe.planner.collectives import Collective
from moe.planner.roofline import (
  bandwidth,
  by_kind_and_axes,
  roofline,
  spanned_sides,
  spans_servers,
  wraps,
)

V5E, V5P, H100 = CHIPS['v5e'], CHIPS['v5p'], CHIPS['h100']
# The chips' coordinates in v5e:2x4, in the order of a mesh (fsdp 2, expert 4).
GRID = list(itertools.product(range(2), range(4)))
MESH = {'fsdp': 2, 'expert': 4}


def gather(axes, sent, times=1.0, kind='all-gather'):
  return Collective(kind, axes, times, sent, 4, '')


def test_the_slowest_term_binds():
  # 197 TFLOPs take 1 s; 1638 GB of HBM 2 s; 10 × 25 GB over one open side of 50 GB/s 5 s.
  times = roofline(V5E, (2, 4), GRID, 197e12, 1638e9, [gather(('expert',), 25e9, 10.0)], MESH)
  assert tuple(times) == pytest.approx((1, 2, 5))
  assert (times.step, times.binds) == (pytest.approx(5), 'interconnect')


def test_axes_span_sides_of_the_torus():
  assert spanned_sides(('expert',), MESH, GRID) == {1: 4}
  assert spanned_sides(('fsdp', 'expert'), MESH, GRID) == {0: 2, 1: 4}
  assert spanned_sides(('expert',), MESH, None) == {}


def test_sides_wrap():
  assert wraps(V5P, (4, 4, 4), 0)
  assert not wraps(V5P, (2, 4, 4), 1)
  assert wraps(V5E, (16, 16), 0)
  assert not wraps(V5E, (8, 16), 0)


def test_bandwidth():
  assert bandwidth(V5P, (8, 8, 8), {0: 8}, 'all-gather') == 200e9  # both ways round a ring
  assert bandwidth(V5P, (8, 8, 8), {0: 8, 1: 8}, 'reduce-scatter') == 400e9
  assert bandwidth(V5P, (8, 8, 8), {0: 4}, 'all-gather') == 100e9  # part of a side is no ring
  assert bandwidth(V5P, (8, 8, 8), {0: 8}, 'all-to-all') == 100e9  # 8 links' worth over 8 devices
  assert bandwidth(V5E, (8, 8), {0: 8}, 'ragged-all-to-all') == 25e9  # half of it without wrapping
  assert bandwidth(V5P, (8, 8, 8), {0: 8, 1: 8}, 'collective-permute') == 100e9
  assert bandwidth(H100, (8,), {}, 'all-to-all') == 450e9


def test_bytes_by_kind_and_axes():
  found = by_kind_and_axes(
    [gather(('fsdp', 'expert'), 3, 2.0), gather(('fsdp', 'expert'), 1), gather(('fsdp',), 5)]
  )
  assert found == {'all-gather': {'fsdp+expert': 7, 'fsdp': 5}}


@pytest.mark.parametrize(
  'axes, spans',
  [
    (('tensor',), False),
    (('expert',), False),
    (('expert', 'tensor'), False),
    (('fsdp',), True),
    (('fsdp', 'tensor'), True),
  ],
)
def test_gpus_of_one_server_use_its_switch_and_others_the_network(axes, spans):
  mesh = {'stage': 1, 'data': 1, 'fsdp': 2, 'expert': 4, 'tensor': 2}
  assert spans_servers(axes, mesh, 8) == spans
  one = Collective('all-gather', axes, 2.0, 45e9, 2, '')
  seconds = roofline(H100, (16,), None, 0.0, 0.0, [one], mesh).interconnect
  assert seconds == pytest.approx(2 * 45e9 / (50e9 if spans else 450e9))


def test_a_group_may_span_servers_that_it_does_not_fill():
  """Groups of 6 devices: the first lies in the first server, the second in both."""
  assert spans_servers(('tensor',), {'data': 4, 'tensor': 6}, 8)
