"""A model with quantized matrices gives the results of an unquantized one with the same numbers,
also on meshes and with kernels.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.config import FEW_BITS
from moe.errors import UserError
from moe.generate import Sampling, generate, only_generating
from moe.losses.cross_entropy import token_losses
from moe.model import Transformer
from moe.ops.implementation import compiling_for
from moe.ops.quantized import Quantized, as_numbers
from moe.parallel import mesh as mesh_lib
from moe.parameters import shardings
from moe.quantize import quantized
from moe.run import Run
from moe.train_step import forward
from tests.moe.ops.backends import TPU
from tests.moe.test_generate import Letters
from tests.small import packed_batch, small_config, small_params

pytestmark = pytest.mark.usefixtures('quick_compile')

# With two devices along `tensor`, each has whole groups of 32 rows of every matrix, and experts
# that TPU kernels pad.
WIDE = {
  'model.d_model': 256,
  'model.num_heads': 4,
  'model.num_kv_heads': 2,
  'model.head_dim': 32,
  'model.num_dense_layers': 1,
  'model.d_ff': 64,
  'moe.d_expert': 64,
  'moe.shared_gate': True,
  'data.batch_size': 8,
}
PROMPTS = ['', 'abc', 'q', 'hello']
ASKED = PROMPTS, 3, Sampling()
is_quantized = lambda w: isinstance(w, Quantized)


def run_of(params, **changed):
  config = small_config(**WIDE, **changed)
  mesh = mesh_lib.make_mesh(config) if changed else None
  return Run(Transformer(config), params, Letters(), config, 0, mesh)


@functools.cache
def numbers():
  return jax.tree.map(jnp.array, small_params(small_config(**WIDE), 1, std=0.2))


@functools.cache
def few(kind):
  return quantized(small_config(**WIDE), dict(numbers()), kind)


@functools.cache
def same_numbers(kind):
  """A run whose float parameters are the numbers that the quantized ones stand for."""
  back = lambda w: as_numbers(w, np.float32) if is_quantized(w) else w
  return run_of(jax.tree.map(back, few(kind), is_leaf=is_quantized))


@pytest.mark.parametrize('kind', FEW_BITS)
def test_which_are_quantized(kind):
  leaves = jax.tree_util.tree_leaves_with_path(few(kind), is_leaf=is_quantized)
  kept = {path[-1].key for path, w in leaves if not is_quantized(w)}
  assert kept == {'embedding', 'scale', 'experts', 'shared_gate'}  # experts: the router's
  own, before = (sum(w.nbytes for w in jax.tree.leaves(tree)) for tree in (few(kind), numbers()))
  assert own < before * (0.3 if kind == 'int8' else 0.17)


@pytest.mark.parametrize('kind', FEW_BITS)
def test_loss_and_tokens_of_the_same_numbers(kind):
  config, batch = small_config(**WIDE), packed_batch(small_config(**WIDE))
  losses = []
  for params in (few(kind), same_numbers(kind).params):
    hidden_BLD, _ = forward(config, params, batch)
    head = params['head']
    losses.append(token_losses(hidden_BLD, head, batch.targets_BL, 10))
  np.testing.assert_allclose(*losses, rtol=2e-5)
  assert generate(run_of(few(kind)), *ASKED) == generate(same_numbers(kind), *ASKED)


@pytest.mark.parametrize('kind', FEW_BITS)
@pytest.mark.parametrize('platform', ['gpu', 'tpu'])
def test_kernels_say_the_same(kind, platform):
  interpret = TPU if platform == 'tpu' else True
  with compiling_for(platform, interpret=interpret):
    found = generate(
      only_generating(run_of(jax.tree.map(jnp.array, few(kind)))), PROMPTS[:2], 2, Sampling()
    )
  assert found == generate(same_numbers(kind), PROMPTS[:2], 2, Sampling())


@pytest.mark.parametrize('kind', FEW_BITS)
def test_a_mesh_says_the_same(kind):
  config = small_config(**WIDE, **{'mesh.data': 4, 'mesh.tensor': 2})
  mesh = mesh_lib.make_mesh(config)
  params = quantized(
    config, jax.device_put(numbers(), shardings(config, mesh, numbers())), kind, mesh
  )
  many = run_of(params, **{'mesh.data': 4, 'mesh.tensor': 2})
  with many.on_mesh():
    assert generate(many, *ASKED) == generate(same_numbers(kind), *ASKED)


@pytest.mark.parametrize('axis', ['fsdp', 'expert'])
def test_meshes_that_do_not_go_with_it(axis):
  config = small_config(**WIDE, **{'mesh.data': 4, f'mesh.{axis}': 2})
  mesh = mesh_lib.make_mesh(config)
  with pytest.raises(UserError, match=f'lie along data and tensor of a mesh, not {axis}'):
    quantized(config, dict(numbers()), 'int8', mesh)


def test_matrices_that_groups_do_not_divide(caplog):
  """Such matrices are int8, and a warning says so."""
  config = small_config(**WIDE | {'moe.d_expert': 40})
  with caplog.at_level('WARNING', 'absl'):
    made = quantized(config, dict(small_params(config)), 'int4')
  experts = made['moe_blocks']['moe']['experts']
  assert [experts[name].is_packed for name in ('gate', 'up', 'down')] == [True, True, False]
  assert 'moe_blocks/moe/experts/down is int8: of 40 rows' in caplog.text
  changed = {'mesh.data': 2, 'mesh.tensor': 4, 'model.num_kv_heads': 4}
  config = small_config(**WIDE | changed)
  mesh = mesh_lib.make_mesh(config)
  made = quantized(config, dict(small_params(config)), 'int4', mesh)
  experts = made['moe_blocks']['moe']['experts']
  assert [experts[name].is_packed for name in ('gate', 'up', 'down')] == [True, True, False]
