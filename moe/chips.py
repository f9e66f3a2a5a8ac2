"""Public figures of chips, for plans and for MFU (model FLOPs utilisation).

Units are bytes, bytes a second and FLOPs a second; 1 GB is 10⁹ bytes.

Sources, read in 2026:
  v5e   cloud.google.com/tpu/docs/v5e: 197 TFLOP/s, 16 GB at 819 GB/s,
        400 GB/s ICI both ways together over 4 links
  v5p   cloud.google.com/tpu/docs/v5p: 459 TFLOP/s, 95 GB at 2,765 GB/s, 1,200 GB/s ICI over 6 links
  v6e   cloud.google.com/tpu/docs/v6e: 918 TFLOP/s, 32 GB at 1,640 GB/s, 800 GB/s ICI over 4 links
  h100  nvidia.com/data-center/h100, SXM: 989 TFLOP/s dense, 80 GB at 3.35 TB/s, 900 GB/s NVLink
        both ways together; docs.nvidia.com/dgx/dgxh100-user-guide: servers of 8, a 400 Gb/s network
        adapter a GPU between them
  a100-40  nvidia.com/data-center/a100, SXM: 312 TFLOP/s dense, 40 GB at 1,555 GB/s, 600 GB/s NVLink
        both ways together; docs.nvidia.com/dgx/dgxa100-user-guide: servers of 8, 200 Gb/s a GPU
  Peaks only: cloud.google.com/tpu/docs/v4: 275 TFLOP/s, 1,228 GB/s; nvidia.com/data-center/a100:
        312 TFLOP/s, 1,555 GB/s with 40 GB, with 80 GB 2,039 (SXM) and 1,935 (PCIe); h200: 989
        TFLOP/s, 4.8 TB/s
A link's one-way figure is half of its share: 50 GB/s on v5e, 100 on v5p and v6e (of which the JAX
scaling book measures 45 and 90); NVLink gives each GPU 450 GB/s each way through a switch.
"""

import dataclasses
from typing import NamedTuple

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """One device of a mesh. Peak rates are of bfloat16 products, which dominate a training step."""

  name: str
  platform: str  # 'tpu' or 'gpu'
  capacity: int  # bytes a program may use, which is less than the chip's memory
  flops: float  # bfloat16, dense
  hbm: float  # bytes a second
  link: float  # bytes a second each way over one link (GPU: all NVLinks together)
  torus: int  # dimensions of the torus that the links form; 0: all-to-all switch
  server: int = 0  # devices that one switch joins; 0: all of them
  network: float = 0.0  # bytes a second each way between a device and another server
  memory: int = 0  # bytes that CUDA reports; a program may be allowed more of them than `capacity`


# A TPU's capacity is the limit that its compiler enforces. JAX takes 75% of a GPU's memory unless
# told otherwise (XLA_PYTHON_CLIENT_MEM_FRACTION).
_GPU_SHARE = 0.75


def _gpu(name, memory, *figures):
  return Chip(name, 'gpu', int(_GPU_SHARE * memory), *figures, memory)


CHIPS = {
  'v5e': Chip('v5e', 'tpu', int(15.75 * GIB), 197e12, 819e9, 50e9, 2),
  'v5p': Chip('v5p', 'tpu', int(95.74 * GIB), 459e12, 2765e9, 100e9, 3),
  'v6e': Chip('v6e', 'tpu', int(31.25 * GIB), 918e12, 1640e9, 100e9, 2),
  'h100': _gpu('h100', 85_029_158_912, 989e12, 3350e9, 450e9, 0, 8, 50e9),
  'a100-40': _gpu('a100-40', 42_331_013_120, 312e12, 1555e9, 300e9, 0, 8, 25e9),
}


class Peaks(NamedTuple):
  """Peak rates of one device, a second."""

  flops: float  # bfloat16, dense
  hbm: float  # bytes


_OF_CHIPS = {name: Peaks(chip.flops, chip.hbm) for name, chip in CHIPS.items()}
# By the beginning of `jax.Device.device_kind`, which names a product, not a chip.
# The first entry that fits counts.
_PEAKS = {
  'TPU v4': Peaks(275e12, 1228e9),
  'TPU v5 lite': _OF_CHIPS['v5e'],
  'TPU v5e': _OF_CHIPS['v5e'],
  'TPU v5': _OF_CHIPS['v5p'],  # 'TPU v5' and 'TPU v5p'
  'TPU v6': _OF_CHIPS['v6e'],  # 'TPU v6 lite' and 'TPU v6e'
  'NVIDIA A100-SXM4-80GB': Peaks(312e12, 2039e9),
  'NVIDIA A100 80GB PCIe': Peaks(312e12, 1935e9),
  'NVIDIA A100': _OF_CHIPS['a100-40'],
  'NVIDIA H100': _OF_CHIPS['h100'],
  'NVIDIA H200': Peaks(989e12, 4800e9),
}
# Slower chips sold under the same name: their peaks are not known, and no MFU is shown for them.
_SLOWER = ('NVIDIA H100 PCIe', 'NVIDIA H100 NVL')


def peaks(device_kind: str) -> Peaks | None:
  """The peak rates of a device; None if they are not known."""
  if device_kind.startswith(_SLOWER):
    return None
  return next((peak for kind, peak in _PEAKS.items() if device_kind.startswith(kind)), None)


def peak_flops(device_kind: str) -> float | None:
  """FLOPs a second of dense bfloat16 products on one device;
  None if they are not known.
  """
  found = peaks(device_kind)
  return found.flops if found else None
