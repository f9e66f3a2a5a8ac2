"""Compiles a config's actual training step for a machine that is not here."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from moe.config import Config
from moe.data.packing import Batch
from moe.ops.implementation import compiling_for
from moe.optimizer import Hyperparameters, hyperparameters
from moe.parallel import mesh as mesh_lib
from moe.parallel.compiler import compiler_options
from moe.parallel.feeding import batch_sharding
from moe.parameters import shardings
from moe.planner import machine as machine_lib
from moe.planner.compiling import Compiled, Stopwatch, bytes_of, compile_traced, placed
from moe.planner.machine import Machine
from moe.train_step import TrainState, init_state, jit_step, make_train_step


def compile_step(config: Config, machine: Machine) -> Compiled:
  """Compiles the step. UserError if the mesh does not fit the machine, or a kernel its chip; other
  errors pass through.
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
  """Compiles the step as `moe.train` does, with `platform`'s kernels: the state is donated and
  sharded over the mesh, the metrics are replicated.
  """
  mesh, watch = mesh_lib.make_mesh(config, devices), Stopwatch()
  with compiling_for(platform), mesh_lib.use(mesh, config.mesh.zero):
    state, batch = (
      laid_out(jax.eval_shape(lambda: init_state(config)), mesh, config),
      _batch(config, mesh),
    )
    arguments = state, batch, _numbers(config, mesh)
    traced = jit_step(make_train_step(config), mesh, state).trace(*arguments)
    options = compiler_options(mesh) | (options or {})
    return compile_traced(traced, mesh, bytes_of_state(state), platform, options, watch)


def bytes_of_state(state: Any) -> dict[str, int]:
  """Bytes per device of parameters and of optimizer state."""
  return {
    'parameters': bytes_of(state.params),
    'optimizer_state': bytes_of(state.optimizer_state),
  }


def laid_out(shapes: TrainState, mesh: Mesh, config: Config) -> TrainState:
  """The shapes of a state with their shardings on a mesh."""
  return placed(shapes, shardings(config, mesh, shapes))


def _batch(config: Config, mesh: Mesh) -> Batch:
  """The shapes of a batch of text that is all of one domain."""
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
