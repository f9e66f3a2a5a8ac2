"""A traced program compiled for a machine that is not here, and what the compiler says of it."""

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
  """What the compiler made of a program, for one device;
  `text` is empty where it refused, peak then what it asked for.
  """

  mesh: dict[str, int]  # axis → devices
  coordinates: list | None  # in the torus, of the mesh's devices
  jaxpr: Any
  held: dict[str, int]  # bytes of what the program is given and keeps, by name
  text: str
  peak_bytes: int  # alive at once
  reserved_bytes: int  # what the program's heap is given: as much, and what lies between
  refusal: str  # the compiler's words
  seconds: float
  cpu_seconds: float
  resident_bytes: int  # the most memory that this process has had


class Stopwatch:
  """From when it is made: seconds, and those of all of the process's threads together."""

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
  """traced: of `jax.jit(…).trace(…)`, inside the contexts that it was traced in.

  Where the compiler refuses it for its size, `Compiled.refusal` says so; other failures come as
  they are.
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
  """Bytes that a refused program would have taken, of the compiler's words.

  'the total memory required for HLO temporaries (26.52G) exceeds …', which counts arguments too, or
  'Used 42.94G of 15.75G hbm'. 0 if neither. UserError where a kernel wants more of a chip's own
  memory than there is.
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
  """The shapes, each with its sharding."""
  return jax.tree.map(
    lambda s, w: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=w), shapes, where
  )


def bytes_of(tree: Any) -> int:
  """A device's, of shapes with shardings."""
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
  )
