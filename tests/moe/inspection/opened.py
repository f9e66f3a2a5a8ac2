"""Untrained runs of tiny models, with a tokenizer made on the spot."""

from typing import ClassVar

import jax

from moe.model import Transformer
from moe.parallel import mesh as mesh_lib
from moe.parameters import shardings
from moe.routers import Router, SoftmaxRouter
from moe.run import Run
from tests.moe.data.helpers import write_corpus
from tests.small import small_config, small_params

ONE_MOE_LAYER = {'model.num_layers': 2, 'model.num_dense_layers': 1, 'model.d_ff': 12}
# Most texts take several windows.
SIZES = {'model.vocab_size': 400, 'ops.implementation': 'reference', 'evaluation.batch_size': 3}
IDS = [[1, 2, 3], [7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18], [5], [3, 3, 9, 27, 1, 0, 31]]


class Renormalised(SoftmaxRouter):
  """A custom router whose gates add up to one."""

  def gates(self, affinities_BLK):
    return affinities_BLK / affinities_BLK.sum(axis=-1, keepdims=True)


class Stubborn(Router):
  """A router that allows no intervention."""

  interventions: ClassVar[tuple[str, ...]] = ()


def config_of(**overrides):
  return small_config(**SIZES | overrides)


def run_of(tokenizer=None, mesh=None, **overrides) -> Run:
  """A run with random weights. `mesh` is {axis: size}; None is no mesh."""
  config = config_of(**overrides, **{f'mesh.{axis}': n for axis, n in (mesh or {}).items()})
  params = small_params(config_of(**overrides))
  if mesh:
    mesh = mesh_lib.make_mesh(config)
    params = jax.device_put(params, shardings(config, mesh, params))
  return Run(Transformer(config), params, tokenizer, config, 7, mesh)


def corpus_config(folder, **overrides):
  for domain in 'ab':
    write_corpus(folder, domain, 20, words=(3, 40))
  sources = f'a={folder}/a-*.txt;b={folder}/b-*.txt'
  return config_of(**{'data.sources': sources, 'data.holdout': 0.2} | overrides)


def with_params(run: Run, change) -> Run:
  """`run` with changed parameters: `change` maps those of the stacked MoE layers to new ones."""
  blocks = run.params['moe_blocks']
  params = run.params | {'moe_blocks': blocks | {'moe': change(blocks['moe'])}}
  return Run(run.model, params, run.tokenizer, run.config, run.step, run.mesh)
