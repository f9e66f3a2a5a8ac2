"""The actual training step of a config, traced, lowered and compiled for a
machine that is not here.
"""

import math
import re
import resource
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from moe.config import Config
from moe.data.packing import Batch
from moe.errors import UserError
from moe.ops.implementation import compiling_for
from moe.optimizer import Hyperparameters, hyperparameters
from moe.parallel import mesh as mesh_lib
from moe.parallel.compiler import compiler_options
from moe.parallel.feeding import batch_sharding
from moe.parameters import shardings
from moe.planner import machine as machine_lib
from moe.planner.machine import Machine
from moe.train_step import TrainState, init_state, jit_step, make_train_step


class Compiled(NamedTuple):
  """What the compiler made of a step, for one device;
  `text` is empty where it refused, peak then what it asked for.
  """

  mesh: dict[str, int]  # axis → devices
  coordinates: list | None  # in the torus, of the mesh's devices
  jaxpr: Any
  state: Any  # ShapeDtypeStructs with shardings
  text: str
  peak_bytes: int  # alive at once
  reserved_bytes: int  # what the program's heap is given: as much, and what lies between
  refusal: str  # the compiler's words
  seconds: float
  cpu_seconds: float
  resident_bytes: int  # the most memory that this process has had


def compile_step(config: Config, machine: Machine) -> Compiled:
  """UserError where the mesh does not fit the machine, or a kernel its chip;
  other failures come as they are.
  """
  return compile_for_devices(
    config,
    machine_lib.devices(machine),
    machine.chip.platform,
    machine_lib.compiler_options(machine),
  )


def compile_for_devices(
  config: Config, devices, platform: str, options: dict | None = None
) -> Compiled:
  """As `moe.train` compiles it: the state donated and laid out by the mesh,
  metrics whole; `platform`'s kernels.
  """
  mesh = mesh_lib.make_mesh(config, devices)
  began, cpu_began = time.perf_counter(), time.process_time()
  with compiling_for(platform), mesh_lib.use(mesh, config.mesh.zero):
    state, batch = (
      laid_out(jax.eval_shape(lambda: init_state(config)), mesh, config),
      _batch(config, mesh),
    )
    arguments = state, batch, _numbers(config, mesh)
    traced = jit_step(make_train_step(config), mesh, state).trace(*arguments)
    lowered = traced.lower()
    try:
      compiled = lowered.compile(compiler_options(mesh) | (options or {}))
      text, refusal = compiled.as_text(), ''
      peak, reserved = _peak_and_reserved(compiled.memory_analysis())
    except jax.errors.JaxRuntimeError as error:
      text, refusal = '', ' '.join(str(error).split())[:400]
      peak = reserved = asked_for(str(error), _bytes_of(state))
      if 'RESOURCE_EXHAUSTED' not in str(error) or not peak:
        raise
  seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
  resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  coordinates = [d.coords for d in mesh.devices.flat] if platform == 'tpu' else None
  return Compiled(
    dict(mesh.shape),
    coordinates,
    traced.jaxpr,
    state,
    text,
    peak,
    reserved,
    refusal,
    seconds,
    cpu_seconds,
    resident,
  )


def asked_for(message: str, state_bytes: int) -> int:
  """Bytes that a refused program would have taken, of the compiler's words.
  It names all of them, or temporaries only.

  'the total memory required for HLO temporaries (26.52G) exceeds …', or 'Used 42.94G of 15.75G
  hbm'. 0 if neither. UserError where a kernel wants more of a chip's own memory than there is.
  """
  if 'memory space vmem' in message:
    raise UserError(
      f'a kernel of the step is too big for the chip: {" ".join(message.split())[:400]}'
    )
  match = re.search(
    r'HLO temporaries \((\d+(?:\.\d+)?)([KMG])|Used (\d+(?:\.\d+)?)([KMG]) of \S+ hbm', message
  )
  if not match:
    return 0
  size, unit = match[1] or match[3], match[2] or match[4]
  return int(float(size) * {'K': 2**10, 'M': 2**20, 'G': 2**30}[unit]) + (
    state_bytes if match[1] else 0
  )


def bytes_of_state(state: Any) -> dict[str, int]:
  """Bytes a device of parameters and of optimizer state."""
  return {
    'parameters': _bytes_of(state.params),
    'optimizer_state': _bytes_of(state.optimizer_state),
  }


def _peak_and_reserved(memory) -> tuple[int, int]:
  results = memory.output_size_in_bytes - memory.alias_size_in_bytes
  held = (
    memory.argument_size_in_bytes
    + memory.temp_size_in_bytes
    + results
    + memory.generated_code_size_in_bytes
  )
  return memory.peak_memory_in_bytes, max(held, memory.peak_memory_in_bytes)


def laid_out(shapes: TrainState, mesh: Mesh, config: Config) -> TrainState:
  """The shapes of a state, with where its parts lie on a mesh."""
  where = shardings(config, mesh, shapes)
  return jax.tree.map(
    lambda s, w: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=w), shapes, where
  )


def _batch(config: Config, mesh: Mesh) -> Batch:
  """Of text of one domain."""
  rows, sharding = config.data.batch_size, batch_sharding(mesh)
  of_rows = lambda width, dtype: jax.ShapeDtypeStruct((rows, width), dtype, sharding=sharding)
  of_tokens = lambda dtype: of_rows(config.data.seq_len, dtype)
  ids = (of_tokens(jnp.int32) for _ in range(4))
  return Batch(*ids, of_tokens(jnp.float32), of_rows(1, jnp.float32))


def _numbers(config: Config, mesh: Mesh) -> Hyperparameters:
  everywhere = NamedSharding(mesh, PartitionSpec())
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), hyperparameters(config)
  )


def _bytes_of(tree) -> int:
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
  )
