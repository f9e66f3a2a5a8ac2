"""A parameter declares its axes and its decay where it is made;
everything else reads them there.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from moe.config import Config
from moe.errors import UserError
from moe.model import init_params
from moe.parallel.sharding import param, resolve, shard_sizes, unboxed
from moe.parameters import decayed, declared
from tests.small import small_config


class Layer(nn.Module):
  config: Config
  shape: tuple
  axes: tuple | None

  @nn.compact
  def __call__(self):
    if self.axes is None:
      return self.param('bias', nn.initializers.zeros, self.shape)
    return param(self, 'w', self.shape, self.axes)


def make(shape, axes):
  return Layer(small_config(), shape, axes).init(jax.random.key(0))['params']


def test_a_parameter_without_declared_axes_is_refused_by_name():
  with pytest.raises(UserError, match=r'parameter bias does not declare its axes'):
    unboxed(make((3,), None))


@pytest.mark.parametrize('axes', [('width',), ('width', 'head'), ('width', None, None)])
def test_axes_that_do_not_fit_are_refused_with_those_there_are(axes):
  with pytest.raises(UserError, match=r"parameter 'w' of shape \(2, 3\) declares .*heads"):
    make((2, 3), axes)


def test_declarations_are_of_the_very_parameters_that_are_made():
  config = small_config(**{'model.num_dense_layers': 1, 'model.d_ff': 16})
  made = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
  assert unboxed(declared(config)) == made
  blocks = declared(config)['moe_blocks']
  assert blocks['attention']['out'].axes == ('layers', 'heads', 'width')
  assert blocks['moe']['experts']['gate'].axes == ('layers', 'experts', 'width', 'hidden')


def test_weight_decay_acts_on_matrices_and_not_on_norm_scales():
  flat = jax.tree_util.tree_leaves_with_path(decayed(small_config()))
  assert {path[-1].key: is_decayed for path, is_decayed in flat} == {
    **dict.fromkeys(['embedding', 'head', 'query', 'key', 'value', 'out'], True),
    **dict.fromkeys(['gate', 'up', 'down', 'experts'], True),
    'scale': False,
  }


def test_the_first_values_are_those_of_a_plain_parameter():
  plain = nn.initializers.normal(stddev=0.006)
  w = unboxed(make((2, 3), ('width', None)))['w']

  class Plain(nn.Module):
    @nn.compact
    def __call__(self):
      return self.param('w', plain, (2, 3))

  assert (w == Plain().init(jax.random.key(0))['params']['w']).all() and w.dtype == jnp.float32


SIZES = {'stage': 2, 'data': 2, 'fsdp': 2, 'expert': 4, 'tensor': 2}


@pytest.mark.parametrize(
  ('axes', 'shape', 'zero', 'split'),
  [
    (('width', 'heads'), (16, 8), 3, (('fsdp', 'expert'), ('tensor',))),
    (('width', 'heads'), (16, 8), 1, ((), ('tensor',))),
    # The expert axis splits experts where it divides them, and their width where it does not.
    (('experts', 'hidden', 'width'), (8, 4, 16), 3, (('expert',), ('tensor',), ('fsdp',))),
    (('experts', 'hidden', 'width'), (6, 4, 16), 3, ((), ('tensor',), ('fsdp', 'expert'))),
    (('experts', 'hidden', 'width'), (6, 4, 16), 1, ((), ('tensor',), ())),
    # Likewise the stage axis splits layers, or else the width if it divides that.
    (('layers', 'width', None), (4, 16, 6), 3, (('stage',), ('fsdp', 'expert'), ())),
    (('layers', 'width', None), (3, 16, 6), 3, ((), ('fsdp', 'expert', 'stage'), ())),
    (('layers', 'width', None), (3, 16, 6), 1, ((), ('stage',), ())),
    (('layers', 'width', None), (3, 8, 6), 3, ((), ('fsdp', 'expert'), ())),
    (('layers', None), (3, 16), 3, ((), ())),
  ],
)
def test_declared_axes_become_mesh_axes(axes, shape, zero, split):
  assert resolve(axes, shape, SIZES, zero).split == split


@pytest.mark.parametrize(
  ('count', 'shards', 'sizes'),
  [(8, 4, [2, 2, 2, 2]), (9, 4, [3, 3, 3, 0]), (7, 4, [2, 2, 2, 1]), (2, 4, [1, 1, 0, 0])],
)
def test_what_does_not_divide_leaves_the_last_shards_with_less(count, shards, sizes):
  assert shard_sizes(count, shards) == sizes
