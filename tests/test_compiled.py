"""The session's folder of compiled programs (conftest.py), and the users' own (moe/compiled.py):
a program read back is the one that would be compiled anew.
"""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from moe import compiled
from moe.optimizer import hyperparameters
from moe.parallel import mesh as mesh_lib
from moe.parallel.feeding import place_whole
from moe.parameters import shardings
from moe.train_step import init_state, make_train_step
from tests.small import compiled_anew, packed_batch, small_config, small_params


@pytest.fixture
def read_back():
  """A list that grows by one with each program read from the folder."""
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


_STARTED = """
from moe import compiled
compiled.keep()
import jax
from tests.small import packed_batch, small_config, small_params
from moe.train_step import forward
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event.rpartition('/')[2]))
config = small_config()
run = jax.jit(lambda params: forward(config, params, packed_batch(config))[0].sum())
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
computed = float(run(small_params(config)))
print(hits.count('cache_hits'), computed)
"""


def test_the_second_start_of_a_program_reads_what_the_first_compiled(tmp_path):
  chosen = (*compiled._CHOSEN, compiled._MOST_BYTES)
  environment = {name: value for name, value in os.environ.items() if name not in chosen}
  environment['XDG_CACHE_HOME'] = str(tmp_path)
  command = [sys.executable, '-c', _STARTED]
  done = [
    subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    for _ in range(2)
  ]
  (first, loss), (second, same) = (each.stdout.split(maxsplit=1) for each in done)
  assert int(second) > int(first) == 0 and loss == same
  assert 'trying once' in done[0].stderr and 'trying once' not in done[1].stderr


@pytest.fixture
def in_a_new_home(monkeypatch, tmp_path):
  for name in compiled._CHOSEN:
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))


@pytest.mark.usefixtures('in_a_new_home')
def test_what_does_not_read_back_is_not_kept(monkeypatch, capfd):
  monkeypatch.setattr(sys, 'executable', '/bin/false')
  for _ in range(2):
    compiled.keep()
    assert 'compiled programs are not kept: exit code 1' in capfd.readouterr().err
  assert compiled._FOLDER not in os.environ


@pytest.mark.usefixtures('in_a_new_home')
def test_who_has_chosen_is_left_alone(monkeypatch, tmp_path):
  monkeypatch.setenv('JAX_ENABLE_COMPILATION_CACHE', '0')
  compiled.keep()
  assert compiled._FOLDER not in os.environ and not list(tmp_path.iterdir())


@pytest.mark.usefixtures('in_a_new_home')
def test_a_home_that_cannot_be_written_is_told(monkeypatch, capfd):
  monkeypatch.setenv('XDG_CACHE_HOME', '/dev/null')
  compiled.keep()
  assert 'compiled programs are not kept: [Errno 20] Not a directory' in capfd.readouterr().err
