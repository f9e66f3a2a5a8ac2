"""Decoding on meshes of eight simulated devices gives the tokens of one device, in float32."""

import jax
import pytest

from moe.generate import Sampling, generate
from moe.model import Transformer
from moe.ops.implementation import compiling_for
from moe.parallel import mesh as mesh_lib
from moe.parameters import shardings
from moe.run import Run
from tests.moe.test_generate import Letters
from tests.small import small_config, small_params

pytestmark = pytest.mark.usefixtures('quick_compile')

PROMPTS = ['', 'abc', 'q', 'hello', 'zyxwvutsrqp', 'zz', 'no', 'm', 'yxw', 'a']
CHANGED = {'model.num_dense_layers': 1, 'model.d_ff': 12, 'data.batch_size': 8}


@pytest.fixture(scope='module')
def one():
  config = small_config(**CHANGED)
  return Run(Transformer(config), small_params(config, 1, std=0.5), Letters(), config, step=0)


def on_mesh(run, **sizes):
  """Returns the run laid out on a mesh of these sizes and `config.mesh` settings."""
  config = small_config(**CHANGED, **{f'mesh.{axis}': size for axis, size in sizes.items()})
  mesh = mesh_lib.make_mesh(config)
  params = jax.device_put(run.params, shardings(config, mesh, run.params))
  return Run(Transformer(config), params, run.tokenizer, config, 0, mesh)


@pytest.mark.parametrize(
  'sizes',
  [
    {'data': 4, 'tensor': 2},
    {'data': 1, 'expert': 8},
    {'data': 2, 'expert': 2, 'tensor': 2},
    {'data': 1, 'fsdp': 4, 'expert': 2},
  ],
  ids=lambda sizes: '-'.join(sizes),
)
def test_every_mesh_says_the_same(one, sizes):
  """Covers more prompts than rows, 6 experts on 8 devices, and a batch that must be filled up."""
  many = on_mesh(one, **sizes)
  for sampling in (Sampling(), Sampling(1.5, top_p=0.9)):
    asked = PROMPTS, 6, sampling, 3
    with many.on_mesh():
      found = generate(many, *asked, stop=['qq'], rows=3)
    assert found == generate(one, *asked, stop=['qq'])


@pytest.mark.parametrize(
  'sizes',
  [{'data': 4, 'tensor': 2}, {'data': 4, 'expert': 2, 'transport': 'padded'}],
  ids=lambda sizes: '-'.join(sizes),
)
def test_a_gpu_says_the_same_on_a_mesh(one, sizes):
  """Runs GPU kernels in the interpreter, on experts that stay stacked and on a device's own.
  (TPU's interpreter knows no mesh, and XLA on CPU no ragged exchange.)
  """
  many, asked = on_mesh(one, **sizes), (PROMPTS[:3], 2, Sampling())
  with compiling_for('gpu', interpret=True), many.on_mesh():
    found = generate(many, *asked, rows=4)
  assert found == generate(one, *asked)
