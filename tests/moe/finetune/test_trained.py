"""Training a part of a model: frozen parameters bit for bit, trained ones as an independent AdamW
on the same gradients, whatever the mesh.
"""

import functools

import jax
import numpy as np
import pytest

from moe.finetune.choice import parse
from moe.optimizer import hyperparameters
from moe.parallel import mesh as mesh_lib
from moe.parallel.feeding import place_whole
from moe.parallel.sharding import replicated
from moe.parameters import shardings
from moe.storage.partial import named
from moe.train_step import init_state, loss_and_gradients, make_train_step
from tests import oracles
from tests.small import assert_close, packed_batch, small_config, small_params

pytestmark = pytest.mark.usefixtures('quick_compile')

# Layers differ in how many are chosen; the second has none.
CHOICE = '0,3,5;;2'
BASE = {
  'model.num_layers': 4,
  'model.num_dense_layers': 1,
  'model.d_ff': 12,
  'moe.expert_balance_weight': 0.5,
  'train.max_bad_steps': 2,
  'optimizer.clip_norm': 0.1,
  'optimizer.peak_lr': 0.01,
  'optimizer.warmup_steps': 2,
  'ops.implementation': 'reference',
  'data.batch_size': 16,
  'mesh.data': 1,
}
EXPERTS = {'finetune.trainable': 'experts', 'finetune.experts': CHOICE}
FROZEN_ROUTER = {'finetune.trainable': 'router_frozen'}
ALL = small_config(**BASE)


_gradients = jax.jit(loss_and_gradients, static_argnums=0)


def is_trained(config, name, shape):
  """A mask of a parameter's elements, told from the config alone."""
  mask = np.zeros(shape, bool)
  if config.finetune.trainable == 'router_frozen':
    mask[...] = 'router' not in name
  elif 'experts' in name and 'router' not in name:
    for layer, chosen in enumerate(parse(config.finetune.experts)):
      mask[layer, list(chosen)] = True
  return mask


def trained_for(config):
  """(parameters before and after each step, metrics, optimizer state), on the config's mesh."""
  devices = int(np.prod([getattr(config.mesh, axis) for axis in mesh_lib.AXES]))
  mesh = mesh_lib.make_mesh(config, jax.devices()[:devices])
  with mesh_lib.use(mesh, config.mesh.zero):
    shapes = jax.eval_shape(lambda: init_state(config))
    where = shardings(config, mesh, shapes)
    state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    state = jax.device_put(state.replace(params=small_params(ALL)), where)
    numbers = jax.device_put(hyperparameters(config), replicated(mesh))
    step = jax.jit(make_train_step(config), donate_argnums=0, out_shardings=(where, None))
    params, metrics = [jax.device_get(state.params)], []
    for batch in batches():
      state, measured = step(state, place_whole(batch, mesh), numbers)
      params.append(jax.device_get(state.params))
      metrics.append(jax.device_get(measured))
  return params, metrics, state.optimizer_state


def batches():
  """The second one is bad."""
  first, second = (packed_batch(ALL, seed, padding_row=True) for seed in (0, 1))
  return [first, first._replace(weights_BL=np.full_like(first.weights_BL, np.inf)), second]


@functools.cache
def on_one_device(trainable):
  return trained_for(small_config(**BASE, **dict(trainable)))


def check_frozen(config, before, after):
  start = named(before)
  for name, now in named(after).items():
    mask = is_trained(config, name, now.shape)
    assert now[~mask].tobytes() == start[name][~mask].tobytes(), name


@pytest.mark.parametrize('trainable', [EXPERTS, FROZEN_ROUTER], ids=['experts', 'router_frozen'])
def test_frozen_parameters_stay_and_the_rest_takes_the_steps_of_adamw(trainable):
  """AdamW in float64 on the gradients of all, those of the frozen zeroed, clipped by the norm of
  the rest.
  """
  config = small_config(**BASE, **trainable)
  params, metrics, state = on_one_device(tuple(trainable.items()))
  gradients, norms = [], []
  for before, batch in ((params[0], batches()[0]), (params[2], batches()[2])):
    masked = {
      name: np.asarray(g, np.float64) * is_trained(config, name, g.shape)
      for name, g in named(jax.device_get(_gradients(ALL, before, batch)[0])).items()
    }
    norms.append(np.sqrt(sum((g**2).sum() for g in masked.values())))
    gradients.append({name: g * min(1, 0.1 / norms[-1]) for name, g in masked.items()})
  assert [int(m['bad_steps']) for m in metrics] == [0, 1, 1]
  assert [float(metrics[i]['gradient_norm']) for i in (0, 2)] == pytest.approx(norms, rel=1e-4)
  check_frozen(config, params[0], params[3])
  compared = 0
  for name, now in named(params[3]).items():
    before, decay = named(params[0])[name], 0.0 if name[-1] == 'scale' else 0.1
    indices = np.argwhere(is_trained(config, name, now.shape))
    for index in map(tuple, indices[:: max(1, len(indices) // 20)]):
      given = [float(g[name][index]) for g in gradients]
      if min(map(abs, given)) < 1e-6:
        continue  # of rounding size, where Adam's quotient magnifies it
      # The bad step between the two moves the schedule on.
      truth = oracles.adamw(
        float(before[index]), given, [0.005, 0.01], b1=0.9, b2=0.95, eps=1e-8, decay=decay
      )
      assert float(now[index]) == pytest.approx(truth, abs=5e-6), (name, index)
      compared += 1
  assert compared > 40
  sizes = {name[-1]: x.shape for name, x in named(state[0].mu).items()}
  if trainable == EXPERTS:
    assert sizes == {
      'gate_chosen': (3, 3, 16, 8),
      'up_chosen': (3, 3, 16, 8),
      'down_chosen': (3, 3, 8, 16),
    }
  else:
    routers = [name for name in named(params[0]) if 'router' in name]
    assert named(params[0]).keys() - named(state[0].mu).keys() == set(routers) and routers


@pytest.mark.parametrize(
  'mesh',
  [
    {'mesh.expert': 2, 'mesh.fsdp': 2, 'mesh.tensor': 2},
    {'mesh.expert': 4, 'mesh.fsdp': 2, 'mesh.zero': 1, 'train.microbatches': 2},
    {'mesh.stage': 2, 'mesh.expert': 2, 'mesh.fsdp': 2, 'train.microbatches': 2},
  ],
  ids=['expert 2, fsdp 2, tensor 2', 'expert 4, ZeRO-1, microbatches', 'stage 2, microbatches'],
)
def test_the_mesh_changes_nothing(mesh):
  """6 experts are dealt out unevenly to 4 devices, 3 MoE layers to 2 stages."""
  config = small_config(**BASE | EXPERTS | {'mesh.transport': 'padded'} | mesh)
  params, metrics, _ = trained_for(config)
  expected, truth, _ = on_one_device(tuple(EXPERTS.items()))
  for name in ('loss', 'gradient_norm'):
    assert_close(*([m[name] for m in each[::2]] for each in (metrics, truth)), 1e-5, name)
  check_frozen(config, params[0], params[3])
  for (name, now), then in zip(named(params[3]).items(), named(expected[3]).values(), strict=True):
    np.testing.assert_allclose(now, then, rtol=0, atol=1e-4, err_msg=str(name))
