"""The session's folder of compiled programs (conftest.py):
what is read back is what would be compiled anew.
"""

import jax
import numpy as np
import pytest

from moe.optimizer import hyperparameters
from moe.parallel import mesh as mesh_lib
from moe.parallel.feeding import place_whole
from moe.parameters import shardings
from moe.train_step import init_state, make_train_step
from tests.small import compiled_anew, packed_batch, small_config, small_params


@pytest.fixture
def read_back():
  """Grows by one with each program that is read from the folder."""
  found = []

  def listen(event, **unused):
    if event == '/jax/compilation_cache/cache_hits':
      found.append(event)

  jax.monitoring.register_event_listener(listen)
  yield found
  jax.monitoring.unregister_event_listener(listen)


@pytest.mark.parametrize('axes', [{}, {'mesh.expert': 2, 'mesh.fsdp': 2}], ids=['one', 'four'])
def test_a_step_read_back_computes_the_same_bits(axes, read_back):
  config = small_config(**{'mesh.data': 1, 'ops.implementation': 'reference'} | axes)
  mesh = mesh_lib.make_mesh(config, jax.devices()[: 4 if axes else 1])
  with mesh_lib.use(mesh, config.mesh.zero):
    shapes = jax.eval_shape(lambda: init_state(config))
    state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    where = shardings(config, mesh, shapes)
    state = jax.device_put(state.replace(params=small_params(config)), where)
    batch = place_whole(packed_batch(config), mesh)
    arguments = state, batch, hyperparameters(config)
    compile_step = lambda: jax.jit(make_train_step(config)).lower(*arguments).compile()
    compile_step()
    before = len(read_back)
    read = compile_step()
    assert len(read_back) == before + 1
    with compiled_anew():
      anew = compile_step()
    assert len(read_back) == before + 1
    for a, b in zip(jax.tree.leaves(read(*arguments)), jax.tree.leaves(anew(*arguments))):
      np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
