"""The mesh's sizes, how it splits parameters, and its errors when something does not fit."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from moe.config import MeshConfig
from moe.errors import UserError
from moe.parallel import mesh as mesh_lib
from moe.parallel.feeding import share_of
from moe.parameters import shardings
from moe.train_step import init_state
from tests.small import small_config


def sizes(**given):
  base = {'data': 1, 'fsdp': 1, 'expert': 1, 'tensor': 1, 'stage': 1}
  return MeshConfig(**base | given, zero=3, transport='auto', receive_buffer=1.5)


def test_minus_one_fills():
  assert mesh_lib.fill(sizes(fsdp=-1, expert=4), 32)['fsdp'] == 8
  assert mesh_lib.fill(sizes(data=-1), 1)['data'] == 1


@pytest.mark.parametrize(
  ('given', 'devices'), [({'expert': 3}, 8), ({'data': -1, 'tensor': 3}, 8), ({'data': 4}, 2)]
)
def test_wrong_product_names_the_keys(given, devices):
  with pytest.raises(UserError) as error:
    mesh_lib.fill(sizes(**given), devices)
  assert all(f'mesh.{axis}={size}' in str(error.value) for axis, size in given.items())
  assert f'{devices} devices' in str(error.value)


@pytest.mark.parametrize(
  ('mesh', 'config', 'words'),
  [
    ({'data': 3}, {}, ('mesh.data=3', 'data.batch_size', '4')),
    ({'tensor': 3}, {'model.vocab_size': 33}, ('mesh.tensor=3', 'model.num_heads=2')),
    ({'tensor': 2}, {'model.num_kv_heads': 1}, ('mesh.tensor=2', 'model.num_kv_heads=1')),
    ({'tensor': 2}, {'moe.d_expert': 9}, ('mesh.tensor=2', 'moe.d_expert=9')),
    ({'fsdp': 4}, {'model.d_model': 18, 'data.batch_size': 8}, ('mesh.fsdp=4', 'model.d_model=18')),
    ({'stage': 3}, {}, ('mesh.stage=3', '2 layers')),
  ],
)
def test_what_does_not_divide_names_both_keys(mesh, config, words):
  devices = jax.devices()[:1] * int(np.prod(list(mesh.values())))
  made = small_config(
    **config
    | {f'mesh.{axis}': size for axis, size in mesh.items()}
    | {'mesh.data': mesh.get('data', 1)}
  )
  with pytest.raises(UserError) as error:
    mesh_lib.make_mesh(made, devices)
  assert all(word in str(error.value) for word in words), str(error.value)


def test_only_one_axis_is_filled():
  with pytest.raises(UserError, match='only one of'):
    small_config(**{'mesh.expert': -1})


def abstract(**given):
  return jax.sharding.AbstractMesh(
    tuple(({axis: 1 for axis in mesh_lib.AXES} | given).values()), mesh_lib.AXES
  )


def specs(config, mesh, zero=3):
  config = dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, zero=zero))
  shapes = jax.eval_shape(lambda: init_state(config))
  return shapes, shardings(config, mesh, shapes)


def test_parameters_are_split_as_the_table_says():
  config = small_config(**{'moe.num_experts': 8})
  shapes, where = specs(config, abstract(fsdp=2, expert=4, tensor=2))
  params = where.params
  assert params['embedding'].spec == P('tensor', ('fsdp', 'expert'))
  block = params['moe_blocks']
  assert block['attention']['out'].spec == P(('stage',), ('tensor',), ('fsdp', 'expert'))
  experts = block['moe']['experts']
  assert experts['gate'].spec == P(('stage',), ('expert',), ('fsdp',), ('tensor',))
  assert experts['down'].spec == P(('stage',), ('expert',), ('tensor',), ('fsdp',))
  moments = where.optimizer_state[0].mu
  assert jax.tree.map(lambda s: s.spec, moments) == jax.tree.map(lambda s: s.spec, params)
  for leaf, sharding in zip(jax.tree.leaves(shapes), jax.tree.leaves(where), strict=True):
    sharding.shard_shape(leaf.shape)  # raises where an axis does not divide


def test_experts_that_cannot_be_dealt_out_are_stored_by_width():
  _, where = specs(small_config(**{'moe.num_experts': 6}), abstract(fsdp=2, expert=4))
  gate = where.params['moe_blocks']['moe']['experts']['gate']
  assert gate.spec == P(('stage',), None, ('fsdp', 'expert'), ('tensor',))
  assert gate.shard_shape((2, 6, 16, 8)) == (2, 6, 2, 8)


def test_zero_1_splits_optimizer_state_only():
  _, where = specs(small_config(), abstract(fsdp=4), zero=1)
  query = lambda tree: tree['moe_blocks']['attention']['query'].shard_shape((2, 16, 16))
  assert query(where.params) == (2, 16, 16)
  assert query(where.optimizer_state[0].mu) == (2, 4, 16)


@pytest.mark.parametrize(
  ('mesh', 'zero', 'query', 'out'),
  [
    ({'stage': 2}, 3, (3, 8, 16), (3, 16, 8)),
    ({'stage': 2, 'fsdp': 2}, 3, (3, 4, 16), (3, 16, 4)),
    ({'stage': 2, 'fsdp': 2}, 1, (3, 8, 16), (3, 16, 8)),
    ({'stage': 2, 'tensor': 2}, 3, (3, 8, 8), (3, 8, 8)),
    ({'stage': 5}, 3, (3, 16, 16), (3, 16, 16)),  # nor do they divide the width
  ],
)
def test_layers_that_stages_do_not_divide_are_stored_by_width(mesh, zero, query, out):
  config = dataclasses.replace(
    small_config(), model=dataclasses.replace(small_config().model, num_layers=3)
  )
  _, where = specs(config, abstract(**mesh), zero)
  block = where.params['moe_blocks']
  assert block['attention']['query'].shard_shape((3, 16, 16)) == query
  assert block['attention']['out'].shard_shape((3, 16, 16)) == out
  assert block['attention_norm']['scale'].shard_shape((3, 16)) == (3, 16)


def _held(*processes):
  return dict(enumerate(map(set, processes)))


@pytest.mark.parametrize(
  'held, shares',
  [
    (_held([0, 1], [2, 3]), [(0, 2), (1, 2)]),
    # On a TPU slice of 4 × 4 chips, fsdp 16 winds through the hosts' blocks of 2 × 2.
    (
      _held([0, 1, 6, 15], [2, 3, 4, 5], [7, 8, 13, 14], [9, 10, 11, 12]),
      [(0, 4), (1, 4), (2, 4), (3, 4)],
    ),
    # Processes that differ only along another mesh axis hold the same rows.
    (_held([4, 5], [0, 1], [4, 5], [0, 1]), [(1, 2), (0, 2), (1, 2), (0, 2)]),
    (_held([0], [0]), [(0, 1), (0, 1)]),
    # Where processes share only some of their rows, all feed everything.
    (_held([0, 1], [1, 2], [2, 3], [3, 0]), [(0, 1)] * 4),
    (_held([0, 1, 2], [3]), [(0, 1)] * 2),
  ],
)
def test_each_row_is_fed_by_the_processes_that_hold_it(held, shares):
  assert [share_of(process, held) for process in held] == shares
