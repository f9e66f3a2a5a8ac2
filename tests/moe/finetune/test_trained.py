"""Training a part of a model: frozen parameters stay bit for bit, and trained ones take the steps
of an independent AdamW on the same gradients, whatever the mesh.
"""

import collections
import functools

import jax
import numpy as np
import pytest

from moe.finetune import adapters
from moe.finetune.choice import parse
from moe.optimizer import hyperparameters
from moe.parallel import mesh as mesh_lib
from moe.parallel.feeding import place_whole
from moe.parallel.sharding import replicated
from moe.parameters import shardings
from moe.storage.partial import name_of, named
from moe.train_step import init_state, loss_and_gradients, make_train_step
from tests import oracles
from tests.oracles import exact
from tests.small import assert_close, packed_batch, small_config, small_params

pytestmark = pytest.mark.usefixtures('quick_compile')

# Layers differ in how many experts are chosen; the second layer has none.
CHOICE = '0,3,5;;2'
BASE = {
  'model.num_layers': 3,
  'moe.expert_balance_weight': 0.5,
  'train.max_bad_steps': 2,
  'optimizer.clip_norm': 0.1,
  'optimizer.peak_lr': 0.01,
  'optimizer.warmup_steps': 2,
  'ops.implementation': 'reference',
  'data.batch_size': 16,
  'mesh.data': 1,
}
LORA = {'finetune.lora_rank': 2, 'finetune.lora_alpha': 3.0}
PARTS = {
  'router_frozen': {'finetune.trainable': 'router_frozen'},
  'experts, LoRA on attention': LORA
  | {'finetune.trainable': 'experts', 'finetune.experts': CHOICE},
  'LoRA': LORA
  | {
    'finetune.trainable': 'lora',
    'finetune.experts': CHOICE,
    'finetune.lora_targets': ('query', 'out', 'experts'),
  },
}
ALL = small_config(**BASE)


_gradients = jax.jit(loss_and_gradients, static_argnums=0)


def is_trained(config, name, shape):
  """Returns a mask of a parameter's trained elements, derived from the config alone."""
  mask, trainable = np.zeros(shape, bool), config.finetune.trainable
  if trainable == 'router_frozen':
    mask[...] = 'router' not in name
  elif '_lora_' in name[-1]:
    mask[...] = True
  elif trainable == 'experts' and 'experts' in name[:-1]:
    for layer, chosen in enumerate(parse(config.finetune.experts)):
      mask[layer, list(chosen)] = True
  return mask


@functools.cache
def start(config):
  """Returns the parameters to start from: the same model in every case, and nonzero adapters."""
  shapes = jax.eval_shape(lambda: init_state(config)).params
  own, generator = named(small_params(ALL)), np.random.default_rng(0)
  draw = lambda path, x: own.get(name_of(path), generator.normal(0, 0.3, x.shape).astype('f4'))
  return jax.tree_util.tree_map_with_path(draw, shapes)


def pairs(config, params):
  """Yields (matrix's name, its index in the stack, A, B, their index) for every adapter."""
  flat = named(params)
  for name, a in flat.items():
    if name[-1].endswith('_lora_a'):
      target = *name[:-1], name[-1].removesuffix('_lora_a')
      b = flat[*name[:-1], f'{target[-1]}_lora_b']
      for layer in range(len(a)):
        if name[-2] != 'experts':
          yield target, (layer,), a[layer], b[layer], (layer,)
          continue
        for place, expert in enumerate(parse(config.finetune.experts)[layer]):
          yield target, (layer, expert), a[layer, place], b[layer, place], (layer, place)


def merged_by_hand(config, params):
  """Returns the model's parameters W + α/r · A B, with the product in float64, then rounded."""
  flat = {name: np.array(x) for name, x in named(params).items()}
  for target, index, a, b, _ in pairs(config, params):
    flat[target][index] += 3.0 / 2 * (exact(a) @ exact(b))
  own = lambda path, _: flat[name_of(path)]
  return jax.tree_util.tree_map_with_path(own, small_params(ALL))


def expected_gradients(config, params, batch):
  """Returns all parameters' gradients, zero where frozen, and the loss, from the merged model.

  With W + s A B: d A = s · dW Bᵀ, d B = s · Aᵀ dW.
  """
  whole, metrics = jax.device_get(_gradients(ALL, merged_by_hand(config, params), batch))
  whole = {name: exact(g) for name, g in named(whole).items()}
  found = {name: np.zeros(x.shape) for name, x in named(params).items()}
  for name, g in whole.items():
    found[name] = g * is_trained(config, name, g.shape)
  for target, index, a, b, at in pairs(config, params):
    of = lambda letter, target=target: found[*target[:-1], f'{target[-1]}_lora_{letter}']
    of('a')[at] = 1.5 * whole[target][index] @ exact(b).T
    of('b')[at] = 1.5 * exact(a).T @ whole[target][index]
  return found, float(metrics['loss'])


def trained_for(config):
  """Returns (parameters at the start and after each step, metrics, optimizer state); trains on the
  config's mesh.
  """
  devices = int(np.prod([getattr(config.mesh, axis) for axis in mesh_lib.AXES]))
  mesh = mesh_lib.make_mesh(config, jax.devices()[:devices])
  with mesh_lib.use(mesh, config.mesh.zero):
    shapes = jax.eval_shape(lambda: init_state(config))
    where = shardings(config, mesh, shapes)
    state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    state = jax.device_put(state.replace(params=start(config)), where)
    numbers = jax.device_put(hyperparameters(config), replicated(mesh))
    step = jax.jit(make_train_step(config), donate_argnums=0, out_shardings=(where, None))
    params, metrics = [jax.device_get(state.params)], []
    for batch in batches():
      state, measured = step(state, place_whole(batch, mesh), numbers)
      params.append(jax.device_get(state.params))
      metrics.append(jax.device_get(measured))
  return params, metrics, state.optimizer_state


def batches():
  """Returns three batches. The second makes the step bad: its weights are infinite."""
  first, second = (packed_batch(ALL, seed, padding_row=True) for seed in (0, 1))
  return [first, first._replace(weights_BL=np.full_like(first.weights_BL, np.inf)), second]


@functools.cache
def on_one_device(part):
  return trained_for(small_config(**BASE, **PARTS[part]))


def check_frozen(config, before, after):
  start = named(before)
  for name, now in named(after).items():
    mask = is_trained(config, name, now.shape)
    assert now[~mask].tobytes() == start[name][~mask].tobytes(), name


@pytest.mark.parametrize('part', PARTS)
def test_frozen_parameters_stay_and_the_rest_takes_the_steps_of_adamw(part):
  """The reference is AdamW in float64. Frozen gradients are zeroed, the others clipped by their
  norm.
  """
  config = small_config(**BASE, **PARTS[part])
  params, metrics, state = on_one_device(part)
  gradients, norms = [], []
  for step, batch in ((0, batches()[0]), (2, batches()[2])):
    given, loss = expected_gradients(config, params[step], batch)
    norms.append(np.sqrt(sum((g**2).sum() for g in given.values())))
    gradients.append({name: g * min(1, 0.1 / norms[-1]) for name, g in given.items()})
    assert float(metrics[step]['loss']) == pytest.approx(loss, rel=1e-5)
    assert float(metrics[step]['gradient_norm']) == pytest.approx(norms[-1], rel=1e-4)
  assert [int(m['bad_steps']) for m in metrics] == [0, 1, 1]
  check_frozen(config, params[0], params[3])
  compared = collections.Counter()
  for name, now in named(params[3]).items():
    before, decay = named(params[0])[name], 0.0 if name[-1] == 'scale' else 0.1
    indices = np.argwhere(is_trained(config, name, now.shape))
    for index in map(tuple, indices[:: max(1, len(indices) // 20)]):
      given = [float(g[name][index]) for g in gradients]
      if min(map(abs, given)) < 1e-6:
        continue  # as small as rounding errors, which Adam's quotient magnifies
      # The bad step between the two advances the schedule.
      truth = oracles.adamw(
        float(before[index]), given, [0.005, 0.01], b1=0.9, b2=0.95, eps=1e-8, decay=decay
      )
      assert float(now[index]) == pytest.approx(truth, abs=5e-6), (name, index)
      compared[name] += 1
  trained = {n for n, x in named(params[0]).items() if is_trained(config, n, x.shape).any()}
  assert set(compared) == trained
  moments = {name: x.shape for name, x in named(state[0].mu).items()}
  if config.finetune.trainable == 'experts':
    rows = {(*name[:-1], f'{name[-1]}_chosen') for name in trained if 'experts' in name}
    trained = {name for name in trained if 'experts' not in name} | rows
    assert {moments[name] for name in rows} == {(3, 3, 16, 8), (3, 3, 8, 16)}
  assert moments.keys() == trained


def test_adapters_are_merged_as_they_are_used():
  config = small_config(**BASE, **PARTS['LoRA'])
  params = start(config)
  found = adapters.merged(config, jax.tree.map(jax.numpy.asarray, params))
  assert_close(found, merged_by_hand(config, params), 1e-6)


@pytest.mark.parametrize(
  ('part', 'mesh'),
  [
    ('LoRA', {'mesh.expert': 4, 'mesh.fsdp': 2}),
    (
      'experts, LoRA on attention',
      {'mesh.stage': 2, 'mesh.expert': 2, 'mesh.zero': 1, 'train.microbatches': 2},
    ),
  ],
  ids=['expert 4, fsdp 2', 'stage 2, expert 2, ZeRO-1, microbatches'],
)
def test_the_mesh_changes_nothing(part, mesh):
  """6 experts are dealt out unevenly to 4 devices, and 3 layers to 2 stages."""
  config = small_config(**BASE | PARTS[part] | {'mesh.transport': 'padded'} | mesh)
  params, metrics, _ = trained_for(config)
  expected, truth, _ = on_one_device(part)
  for name in ('loss', 'gradient_norm'):
    assert_close(*([m[name] for m in each[::2]] for each in (metrics, truth)), 1e-5, name)
  check_frozen(config, params[0], params[3])
  for (name, now), then in zip(named(params[3]).items(), named(expected[3]).values(), strict=True):
    np.testing.assert_allclose(now, then, rtol=0, atol=1e-4, err_msg=str(name))
