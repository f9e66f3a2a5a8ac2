"""Memory and MFU, on this machine and on devices that are only named."""

import mmap
import types

import jax
import pytest

from moe.chips import CHIPS, peak_flops, peaks
from moe.metrics import machine


def devices(monkeypatch, kind, memory=None):
  made = [
    types.SimpleNamespace(device_kind=kind, memory_stats=lambda stats=stats: stats)
    for stats in memory or [None, None]
  ]
  monkeypatch.setattr(jax, 'devices', lambda: made)
  monkeypatch.setattr(jax, 'local_devices', lambda: made)


@pytest.mark.parametrize(
  'kind, peak',
  [
    ('TPU v5 lite', CHIPS['v5e'].flops),
    ('TPU v5', CHIPS['v5p'].flops),
    ('TPU v5p', CHIPS['v5p'].flops),
    ('TPU v6 lite', CHIPS['v6e'].flops),
    ('NVIDIA H100 80GB HBM3', CHIPS['h100'].flops),
    ('NVIDIA H100 PCIe', None),
    ('NVIDIA A100-SXM4-40GB', 312e12),
    ('cpu', None),
  ],
)
def test_a_peak_is_known_by_what_jax_calls_the_device(kind, peak):
  assert peak_flops(kind) == peak


def test_memory_of_products_that_share_a_name_differs():
  kinds = 'NVIDIA A100-SXM4-40GB', 'NVIDIA A100-SXM4-80GB', 'TPU v5 lite', 'NVIDIA H100 NVL'
  assert [found and found.hbm for found in map(peaks, kinds)] == [1555e9, 2039e9, 819e9, None]


def test_mfu_is_a_share_of_all_devices_and_absent_where_the_peak_is_not_known(monkeypatch):
  devices(monkeypatch, 'TPU v6 lite')
  assert machine.mfu(CHIPS['v6e'].flops) == {'mfu': 0.5}
  devices(monkeypatch, 'cpu')
  assert machine.mfu(1e9) == {}


def test_memory_is_that_of_the_fullest_device(monkeypatch):
  stats = [{'bytes_in_use': used, 'peak_bytes_in_use': 10 * used} for used in (5, 7, 6)]
  devices(monkeypatch, 'TPU v6 lite', stats)
  assert machine.memory() == {'memory_in_use': 7, 'memory_peak': 70}


def test_on_cpu_memory_is_the_process_s_own():
  before = machine.memory()
  # A new mapping gives pages that the process does not have yet, whatever memory it has freed.
  held = mmap.mmap(-1, 256 << 20)
  for page in range(0, len(held), 1 << 12):
    held[page] = 1
  after = machine.memory()
  assert after['memory_in_use'] - before['memory_in_use'] > 200 << 20
  assert after['memory_peak'] >= after['memory_in_use'] - (16 << 20)
