"""A run handed from mesh to mesh and from process count to process count, on eight devices.

Each mesh must restore bit for bit what the last one saved, laid out its own way. Its processes
together must read exactly the rows that one process reads. An iterator stands for each process.
"""

import contextlib
import functools

import jax
import numpy as np

from moe.checkpoint import Checkpointer
from moe.config import from_config_dict
from moe.data.batches import train_iterator
from moe.data.prepare import prepare
from moe.parallel import mesh as mesh_lib
from moe.parameters import shardings
from moe.run import open_workdir
from moe.train_step import init_state
from tests.launch.runs import config as tiny

# Mesh and number of processes. 6 experts are dealt out over 2 devices, and stored by width over 4.
# 3 layers are dealt out to 3 stages, and stored by width over 2.
CASES = (
  ({}, 1),
  ({'data': 8}, 8),
  ({'fsdp': 8}, 4),
  ({'expert': 2, 'data': 2}, 2),
  ({'tensor': 2, 'expert': 4}, 1),
  ({'expert': 4, 'fsdp': 2}, 8),
  ({'fsdp': 2, 'expert': 2, 'tensor': 2}, 2),
  ({'fsdp': 4, 'zero': 1}, 4),
  ({'tensor': 2}, 1),
  ({'stage': 2, 'data': 2}, 2),
  ({'stage': 3, 'fsdp': 2}, 1),
  ({'stage': 2, 'fsdp': 2, 'zero': 1}, 1),
  ({}, 1),
)
STEPS = 3  # that each case reads


def make_config(data_flags, axes):
  config = tiny.get_config()
  flags = dict(flag.removeprefix('--config.').split('=', 1) for flag in data_flags)
  config.update_from_flattened_dict(
    flags
    | {
      'data.holdout': float(flags['data.holdout']),
      'data.batch_size': 8,
      'model.num_layers': 3,
      'moe.num_experts': 6,
      'mesh.data': 1,
      'train.microbatches': 2 if axes.get('stage') else 1,
    }
    | {f'mesh.{axis}': size for axis, size in axes.items()}
  )
  return from_config_dict(config)


def random_state(config):
  """Returns a state in which all arrays differ."""
  generator = np.random.default_rng(0)
  draw = lambda x: (generator.random(x.shape) * 1000).astype(x.dtype)
  return jax.tree.map(draw, jax.eval_shape(lambda: init_state(config)))


def read(data, config, count, state):
  """Returns (rows of STEPS steps as `count` processes read them, iterator state)."""
  iterators = [train_iterator(data, config, number, count) for number in range(count)]
  for iterator in iterators if state else ():
    iterator.set_state(state)
  steps = []
  for _ in range(STEPS):
    parts = [next(iterator) for iterator in iterators]
    steps.append(jax.tree.map(lambda *parts: np.concatenate(parts), *parts))
  states = [iterator.get_state() for iterator in iterators]
  assert all(other == states[0] for other in states)
  return steps, states[0]


def assert_equal(actual, truth):
  for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(truth), strict=True):
    np.testing.assert_array_equal(np.asarray(a), b)


def test_a_run_handed_from_mesh_to_mesh_keeps_every_bit_and_the_next_example(data_flags, tmp_path):
  config = make_config(data_flags, {})
  data = prepare(config, config.data.dir)
  truth = random_state(config)
  reference, state, step = train_iterator(data, config), None, 0
  for axes, count in CASES:
    config = make_config(data_flags, axes)
    size = int(np.prod([n for axis, n in axes.items() if axis != 'zero']))
    mesh = mesh_lib.make_mesh(config, jax.devices()[:size])
    open_workdir(config, tmp_path)
    (tmp_path / 'metrics.jsonl').touch()  # once a run has logged a step, its config is checked
    where = functools.partial(shardings, config, mesh)
    with (
      contextlib.closing(Checkpointer(tmp_path, config, data.tokenizer)) as checkpointer,
      mesh_lib.use(mesh, config.mesh.zero),
    ):
      if step:
        restored = checkpointer.restore_newest(where)
        assert restored.step == step
        assert_equal(restored.state, truth)
        jax.tree.map(_assert_laid_out, restored.state, where(truth))
        train_state, state = restored.state, restored.data_state
      else:
        train_state = jax.device_put(truth, where(truth))
      steps, state = read(data, config, count, state)
      for batch in steps:
        assert_equal(batch, next(reference))
      step += STEPS
      checkpointer.save(step, train_state, state, None)
      checkpointer.wait(step)


def _assert_laid_out(array, sharding):
  assert array.sharding.is_equivalent_to(sharding, array.ndim), (array.sharding, sharding)
