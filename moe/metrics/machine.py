"""How much of the machine a run uses: memory, and the share of the chips' peak FLOP/s."""

import resource
import sys

import jax

from moe.chips import peak_flops


def memory() -> dict[str, int]:
  """`memory_in_use` and `memory_peak` of this process's fullest device, in bytes.

  CPU devices have no memory of their own: there it is the process's resident memory.
  """
  stats = [device.memory_stats() for device in jax.local_devices()]
  if not all(stats):
    return {'memory_in_use': _resident(), 'memory_peak': _peak_resident()}
  fullest = lambda key: max(stat[key] for stat in stats)
  return {'memory_in_use': fullest('bytes_in_use'), 'memory_peak': fullest('peak_bytes_in_use')}


def mfu(model_flops_per_second: float) -> dict[str, float]:
  """`mfu`: the model's own FLOP/s, without recomputation, over the peak of all devices.

  {} if a chip's peak is not known, as on CPU.
  """
  peaks = [peak_flops(device.device_kind) for device in jax.devices()]
  if None in peaks:
    return {}
  return {'mfu': model_flops_per_second / sum(peaks)}


def _peak_resident() -> int:
  unit = 1 if sys.platform == 'darwin' else 1024  # getrusage counts bytes on macOS, else KiB
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _resident() -> int:
  """Resident memory now; its peak where the system has no /proc."""
  try:
    with open('/proc/self/statm', encoding='ascii') as file:
      return int(file.read().split()[1]) * resource.getpagesize()
  except OSError:
    return _peak_resident()
