"""The real parameter tree of every published config is compared with moe/accounting.py, by shape
only. The initial values are tested on a small one.
"""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.accounting import account, check
from moe.config import from_config_dict
from moe.errors import UserError
from moe.model import init_params
from tests.small import small_config

pytestmark = pytest.mark.usefixtures('quick_compile')

FILES = ('validation', 'scaling', 'ablations', 'proxy', 'quickstart')
MODULES = {file: importlib.import_module(f'experiments.{file}') for file in FILES}
CONFIGS = [(file, name) for file, module in MODULES.items() for name in module.VARIANTS]


def _sizes(config):
  """{path: (number of elements, dtype)}, in Python integers as 145B does not fit 32 bits."""
  tree = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
  return {
    tuple(key.key for key in path): (int(np.prod(x.shape, dtype=object)), x.dtype)
    for path, x in jax.tree_util.tree_leaves_with_path(tree)
  }


@pytest.mark.parametrize(('file', 'name'), CONFIGS)
def test_sizes_equal_the_accounting(file, name):
  config = from_config_dict(MODULES[file].get_config(name))
  sizes, counts = _sizes(config), account(config)
  assert {dtype for _, dtype in sizes.values()} == {jnp.dtype(jnp.float32)}
  total = lambda *parts: sum(
    size for path, (size, _) in sizes.items() if not parts or set(parts) & set(path[:-1])
  )
  routed, embedding = total('experts'), sizes['embedding',][0] + sizes['head',][0]
  # K of E routed experts are active.
  idle = routed - routed * config.moe.experts_per_token // max(config.moe.num_experts, 1)
  assert counts.total_params == total()
  assert counts.expert_params == total('experts', 'shared', 'mlp')
  assert counts.active_params == total() - idle
  assert counts.active_expert_params == counts.expert_params - idle
  assert counts.non_embedding_params == total() - embedding
  assert counts.active_non_embedding_params == total() - embedding - idle


def test_wider_experts_are_as_large_as_counted():
  config = small_config(**{'moe.wide_experts': 2, 'moe.wide_factor': 3})
  shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
  check(config, shapes)
  assert shapes['moe_blocks']['moe']['experts']['gate'].shape[1] == 6 + 2 * 2


def test_a_tree_of_another_size_than_is_counted_is_refused_by_its_part():
  config = small_config()
  shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
  check(config, shapes)
  shapes['moe_blocks']['moe']['router']['bias'] = jax.ShapeDtypeStruct((2, 6), jnp.float32)
  with pytest.raises(
    UserError, match=r'^routers of .* has 204 parameters.* counts 192: fix num_par'
  ):
    check(config, shapes)


def test_every_matrix_starts_from_the_same_normal_distribution_and_no_two_are_alike():
  config = small_config(**{'moe.d_expert': 64})
  # The 'rbg' generator compiles faster than the default one; init_params is the same for both.
  init = jax.jit(init_params, static_argnums=0)
  params, again, other = (init(config, jax.random.key(seed, impl='rbg')) for seed in (0, 0, 1))
  assert all((a == b).all() for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(again)))
  matrices = []
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    if path[-1].key == 'scale':
      assert (leaf == 1).all(), path
      continue
    # Axes of layers and experts come before those of the matrix.
    matrices += list(np.asarray(leaf).reshape(-1, *leaf.shape[-2:]))
    size = leaf.size
    assert abs(leaf.mean()) < 5 * 0.006 / size**0.5, path
    assert leaf.std() == pytest.approx(0.006, rel=5 / (2 * size) ** 0.5), path
  assert len({matrix.ravel()[:4].tobytes() for matrix in matrices}) == len(matrices)
  assert (params['head'] != other['head']).any()
