"""Compiles a traced program for a machine that is not here, and collects the compiler's figures."""

import math
import re
import resource
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from moe.errors import UserError


class Compiled(NamedTuple):
  """A compiled program and its figures for one device. If the compiler refused the program for its
  size, `text` is empty and both sizes are what it asked for.
  """

  mesh: dict[str, int]  # axis → devices
  coordinates: list | None  # of the mesh's devices in the torus
  jaxpr: Any
  held: dict[str, int]  # bytes of the arguments that the program also keeps, by name
  text: str
  peak_bytes: int  # most bytes that are alive at once
  reserved_bytes: int  # size of the program's heap: the peak and the gaps between arrays
  refusal: str  # the compiler's words
  seconds: float
  cpu_seconds: float
  resident_bytes: int  # the most memory that this process has had


class Stopwatch:
  """Measures seconds since it was made: wall time, and CPU time of all threads of the process."""

  def __init__(self):
    self._began = time.perf_counter(), time.process_time()

  def read(self) -> tuple[float, float]:
    began, cpu_began = self._began
    return time.perf_counter() - began, time.process_time() - cpu_began


def compile_traced(
  traced: Any,
  mesh: Mesh,
  held: Mapping[str, int],
  platform: str,
  options: Mapping[str, Any],
  watch: Stopwatch,
) -> Compiled:
  """Compiles what `jax.jit(…).trace(…)` returned, in the contexts in which it was traced.

  If the compiler refuses it for its size, `Compiled.refusal` says so; other errors pass through.
  """
  lowered = traced.lower()
  try:
    compiled = lowered.compile(dict(options))
    text, refusal = compiled.as_text(), ''
    peak, reserved = _peak_and_reserved(compiled.memory_analysis())
  except jax.errors.JaxRuntimeError as error:
    text, refusal = '', ' '.join(str(error).split())[:400]
    peak = reserved = asked_for(str(error))
    if 'RESOURCE_EXHAUSTED' not in str(error) or not peak:
      raise
  resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  coordinates = [d.coords for d in mesh.devices.flat] if platform == 'tpu' else None
  program = dict(mesh.shape), coordinates, traced.jaxpr, dict(held), text, peak, reserved, refusal
  return Compiled(*program, *watch.read(), resident)


def asked_for(message: str) -> int:
  """Bytes that a refused program would have needed, read from the compiler's message.

  That says 'the total memory required for HLO temporaries (26.52G) exceeds …', which includes the
  arguments, or 'Used 42.94G of 15.75G hbm'. 0 if it says neither. UserError if a kernel needs more
  VMEM than the chip has.
  """
  if 'memory space vmem' in message:
    raise UserError(
      f'a kernel of the program is too big for the chip: {" ".join(message.split())[:400]}'
    )
  size = r'(\d+(?:\.\d+)?)([KMG])'
  match = re.search(rf'HLO temporaries \({size}|Used {size} of \S+ hbm', message)
  if not match:
    return 0
  number, unit = match[1] or match[3], match[2] or match[4]
  return int(float(number) * {'K': 2**10, 'M': 2**20, 'G': 2**30}[unit])


def _peak_and_reserved(memory) -> tuple[int, int]:
  results = memory.output_size_in_bytes - memory.alias_size_in_bytes
  held = (
    memory.argument_size_in_bytes
    + memory.temp_size_in_bytes
    + results
    + memory.generated_code_size_in_bytes
  )
  return memory.peak_memory_in_bytes, max(held, memory.peak_memory_in_bytes)


def placed(shapes: Any, where: Any) -> Any:
  """The tree of shapes with the tree of shardings put on it."""
  return jax.tree.map(
    lambda s, w: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=w), shapes, where
  )


def bytes_of(tree: Any) -> int:
  """Bytes per device of a tree of shapes with shardings."""
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
  )
