"""Compiles decoding's programs (moe/generation/programs.py) for a machine that is not here."""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from moe.config import FEW_BITS, Config, MeshConfig
from moe.errors import UserError
from moe.generation import layers, programs, weights
from moe.generation.sampling import Drawing, Sampling
from moe.model import Transformer
from moe.ops.implementation import compiling_for
from moe.parallel import mesh as mesh_lib
from moe.parallel import sharding
from moe.parameters import init, shardings
from moe.planner import machine as machine_lib
from moe.planner.compiling import Compiled, Stopwatch, bytes_of, compile_traced, placed
from moe.planner.machine import Machine
from moe.quantize import quantized


class Decoding(NamedTuple):
  """What to plan for: a model, the type of its weights, the number of rows and their length."""

  config: Config  # data.seq_len is the context; mesh is decoding's
  dtype: str
  batch: int

  @classmethod
  def of(
    cls, config: Config, devices: int, axes: Mapping[str, int] | None, *rest, context: int
  ) -> 'Decoding':
    """A setting with a context length. `axes`: of the mesh; without them all devices are along
    `tensor`. UserError if `context` is below 1.
    """
    sizes = {'data': 1, **(axes or {'tensor': devices})}
    if context < 1:
      raise UserError(f'--context={context} must be at least 1')
    data = dataclasses.replace(config.data, seq_len=context)
    return cls(dataclasses.replace(config, mesh=MeshConfig(**sizes), data=data), *rest)


class CompiledDecoding(NamedTuple):
  step: Compiled  # one token of every row; holds 'weights' and 'cache'
  prefill: Compiled  # a piece of a prompt, put into the same cache


def compile_decoding(decoding: Decoding, machine: Machine) -> CompiledDecoding:
  """Compiles both programs. UserError if the mesh does not fit the machine; other errors pass
  through.
  """
  return compile_for_devices(
    decoding,
    machine_lib.devices(machine),
    machine.chip.platform,
    machine_lib.compiler_options(machine),
  )


def compile_for_devices(
  decoding: Decoding, devices, platform: str, options: dict | None = None
) -> CompiledDecoding:
  """Compiles both programs as `moe.generate` runs them: with `platform`'s kernels and the cache
  donated. UserError if no program has that number of rows.
  """
  config, rows = decoding.config, decoding.batch
  mesh = mesh_lib.make_mesh(config, devices)
  with compiling_for(platform), mesh_lib.use(mesh, config.mesh.zero):
    if programs.rows_for(rows) != rows:
      raise UserError(
        f'--batch={rows}: programs have {programs.rows_for(rows)} rows, a power of 2 that the mesh '
        'divides'
      )
    arguments = _Arguments(decoding, mesh)
    held = {'weights': bytes_of(arguments.params), 'cache': bytes_of(arguments.cache)}

    def compiled(program, *rest):
      watch = Stopwatch()
      traced = program.trace(Transformer(config), arguments.params, arguments.drawing, *rest)
      return compile_traced(traced, mesh, held, platform, options or {}, watch)

    array, prompts = arguments.array, programs.rows_for(1)
    of_rows = programs.Rows(*(array(rows) for _ in programs.Rows._fields))
    tokens_AL, of_prompts = array(prompts, programs.MOST_PIECE), (array(prompts), array(prompts))
    piece = programs.Piece(tokens_AL, array(), *of_prompts)
    return CompiledDecoding(
      compiled(programs.step, of_rows, arguments.cache),
      compiled(programs.piece_in_place, piece, arguments.cache, *of_prompts),
    )


class _Arguments:
  """The shapes of the programs' arguments, and their shardings on a mesh."""

  def __init__(self, decoding: Decoding, mesh: jax.sharding.Mesh):
    config, self._whole = decoding.config, NamedSharding(mesh, PartitionSpec())
    model = config.model

    def stored():
      params = init(config, jax.random.key(0))
      if decoding.dtype in FEW_BITS:
        return quantized(config, params, decoding.dtype, mesh)
      return jax.tree.map(lambda w: w.astype(decoding.dtype), params)

    shapes = jax.eval_shape(stored)
    where = shardings(config, mesh, shapes)
    if weights.on_accelerator():
      shapes = jax.eval_shape(lambda params: weights.as_used(config, params), shapes)
    self.params = placed(shapes, where)
    if weights.on_accelerator():
      self.params = weights.split(config, self.params, _cut)
    cache = jax.eval_shape(lambda: layers.empty_cache(model, decoding.batch, config.data.seq_len))
    rows = NamedSharding(mesh, sharding.spec('batch', None, 'heads', None))
    self.cache = placed(cache, jax.tree.map(lambda _: rows, cache))
    drawing = jax.eval_shape(
      lambda: Drawing(
        Sampling(*map(jnp.asarray, Sampling().as_arrays(model.vocab_size))),
        jnp.zeros(model.vocab_size, bool),
        jax.random.key(0),
      )
    )
    self.drawing = placed(drawing, jax.tree.map(lambda _: self._whole, drawing))

  def array(self, *shape: int) -> jax.ShapeDtypeStruct:
    """The shape of an int32 array, replicated on every device."""
    return jax.ShapeDtypeStruct(shape, np.int32, sharding=self._whole)


def _cut(w, layer):
  """The shape and sharding of one layer's part of a stacked array."""
  del layer
  where = NamedSharding(w.sharding.mesh, PartitionSpec(*w.sharding.spec[1:]))
  return jax.ShapeDtypeStruct(w.shape[1:], w.dtype, sharding=where)
