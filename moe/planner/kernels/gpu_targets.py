"""GPUs that programs are compiled for, as XLA describes them to its compiler.

Figures: docs.nvidia.com/cuda/hopper-tuning-guide and ampere-tuning-guide, and what CUDA reports for
such a device.
"""

from typing import NamedTuple


class Target(NamedTuple):
  """What the compiler must know about a GPU, in bytes and bytes per second."""

  name: str
  capability: tuple[int, int]
  architecture: str  # as ptxas names it
  cores: int  # streaming multiprocessors
  units: int  # float32 units per core
  gigahertz: float
  shared_memory: int  # the most that a block may ask for; a core has 1 KiB more
  l2: int
  bandwidth: int
  memory: int

  @property
  def description(self) -> str:
    """The text form of XLA's GpuTargetConfigProto."""
    major, minor = self.capability
    return f"""
platform_name: "CUDA"
device_description_str: "{self.name}"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
gpu_device_info {{
  name: "{self.name}"
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  core_count: {self.cores}
  fpus_per_core: {self.units}
  clock_rate_ghz: {self.gigahertz}
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: {self.shared_memory}
  shared_memory_per_core: {self.shared_memory + 1024}
  l2_cache_size: {self.l2}
  memory_bandwidth: {self.bandwidth}
  device_memory_size: {self.memory}
}}
"""


_H100 = Target(
  name='NVIDIA H100 80GB HBM3',
  capability=(9, 0),
  architecture='sm_90a',
  cores=132,
  units=128,
  gigahertz=1.98,
  shared_memory=232_448,
  l2=52_428_800,
  bandwidth=3_352_320_000_000,
  memory=85_029_158_912,
)
_A100 = Target(
  name='NVIDIA A100-SXM4-40GB',
  capability=(8, 0),
  architecture='sm_80',
  cores=108,
  units=64,
  gigahertz=1.41,
  shared_memory=166_912,
  l2=41_943_040,
  bandwidth=1_555_200_000_000,
  memory=42_331_013_120,
)
TARGETS = {'h100': _H100, 'a100-40': _A100}
