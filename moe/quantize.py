"""Stores the matrices of a trained model in a few bits (`moe.ops.quantized`), for running it."""

import math

import jax
from absl import logging
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, NamedSharding

from moe.config import Config
from moe.errors import UserError
from moe.ops.quantized import GROUP, quantize
from moe.parallel import sharding
from moe.parameters import declared_by_path, is_exact


def quantized(config: Config, params: dict, kind: str, mesh: Mesh | None = None) -> dict:
  """The tree with `Quantized` matrices of attention, FFNs, experts and the head.

  The embedding stays as it is, since a token reads few of its rows, and so does what is used in
  float32: routers, gates and norms. If the rows of a matrix, or a device's part of them, are not
  whole groups of int4, it becomes int8 and a warning is logged. Empties `params` one matrix at a
  time, so that memory never holds all of them twice.

  kind: of `moe.config.FEW_BITS`. UserError for a mesh that deals out experts or gathers weights.
  """
  boxes, flat = declared_by_path(config), flatten_dict(params)
  params.clear()

  def made(path, w):
    box, name = boxes[path], '/'.join(path)
    if is_exact(path, box) or path[-1] == 'embedding':
      return w
    if mesh is None:
      return quantize(w, _possible(kind, name, w.shape[-2]))
    stored = _where(config, mesh, box.axes, w.shape)
    rows = w.shape[-2] // math.prod(mesh.shape[axis] for axis in stored.split[-2])
    run = lambda w: quantize(w, _possible(kind, name, rows))
    specs = sharding.specs(jax.eval_shape(run, w), stored)
    where = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
    return jax.jit(run, out_shardings=where)(w)

  return unflatten_dict({path: made(path, flat.pop(path)) for path in list(flat)})


def _possible(kind, name, rows):
  if kind == 'int4' and rows % GROUP:
    logging.warning('%s is int8: of %d rows int4 has no whole groups of %d', name, rows, GROUP)
    return 'int8'
  return kind


def _where(config, mesh, axes, shape):
  """The `Stored` of a matrix. UserError if the mesh splits its width, experts or layers."""
  stored = sharding.resolve(axes, shape, mesh.shape, config.mesh.zero)
  for axis, by in zip(axes, stored.split, strict=True):
    several = [name for name in by if mesh.shape[name] > 1]
    if several and axis in ('width', 'experts', 'layers'):
      raise UserError(
        f'int8 and int4 weights lie along data and tensor of a mesh, not {several[0]}'
      )
  return stored
