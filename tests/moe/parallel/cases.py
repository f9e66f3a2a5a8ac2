"""Compares twenty training steps of the proxy DeepSeekMoE on eight devices with one device.

The model is a narrower proxy.py:deepseek_moe. Run as a program, this measures a group of cases;
--whole takes the proxy's own width (8 GB, a minute a case):

  python -m tests.moe.parallel.cases GROUP [--whole]

It prints one JSON line a case: its relative distances from one device.
"""

import contextlib
import functools
import hashlib
import json
import sys
from collections.abc import Iterator
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments import proxy
from moe.config import Config, first_name, from_config_dict
from moe.optimizer import hyperparameters
from moe.parallel import mesh as mesh_lib
from moe.parallel.experts import exchange
from moe.parallel.feeding import place_whole
from moe.parallel.sharding import replicated
from moe.parameters import shardings
from moe.train_step import init_state, make_train_step
from tests.small import packed_batch

STEPS = 20
_NARROW = {
  'model.vocab_size': 256,
  'model.num_layers': 4,
  'model.d_model': 32,
  'model.head_dim': 8,
  'model.init_std': 0.1,
  'moe.d_expert': 16,
}
# At full width rounding errors are larger. In 20 steps of many tokens, some token always has two
# experts that score within rounding of each other, and no order of summation keeps its choice from
# flipping. Hence few tokens, and parameters with which none comes as near. With so few tokens, the
# proxy's own warm-up of 30 steps measures meshes badly: gradients amplify rounding a hundredfold by
# step 16, and one device differs from itself by 1e-5 if the parameters' last bits do (2e-7 with a
# warm-up of 300).
_WHOLE = {'data.seq_len': 8, 'optimizer.warmup_steps': 300}
_SEED, _SEED_WHOLE = 0, 5
_COMMON = {
  'moe.expert_balance_weight': 0.1,  # large, so that its errors show
  'moe.device_balance_weight': 0.1,
  'moe.device_groups': 3,
  'moe.router_z_weight': 0.01,
  'data.batch_size': 16,
  'data.seq_len': 24,
  'train.num_steps': STEPS,
  'train.loss_chunk': 20,
  'ops.implementation': 'reference',  # compiles fastest; some cases use a user's default, `_AUTO`
  'mesh.data': 1,
}
_AUTO = {'ops.implementation': 'auto'}
# 5 MoE layers on 4 stages: 2, 2, 1, 0. At d_ff 48 or 64 some token has two experts that score
# within rounding of each other by step 20. One flipped choice shows in expert_load_NE, and no order
# of summation is the right one.
_UNEVEN = {'model.num_layers': 6, 'model.num_dense_layers': 1, 'model.d_ff': 40}
_FEW, _EIGHT = (
  {'moe.num_experts': e, 'moe.experts_per_token': 2, 'moe.device_groups': 2} for e in (4, 8)
)


# With seeds 5 and 6 some token's gates reach gate_mass only to within rounding at some step.
_GATES = {'moe.gate_mass': 0.8, 'moe.shared_gate': True, 'seed_whole': 7}
# 83 units.
_UNEQUAL = {'moe.wide_experts': 20, 'moe.device_balance_weight': 0.0, 'moe.device_groups': 1}
_LOSS_FREE = {'moe.balancing': 'bias', 'moe.bias_update_rate': 0.01}


def _mesh(**sizes):
  return {f'mesh.{axis}': size for axis, size in sizes.items()}


# Case → (settings that differ from one device, settings that both have). Keys are the config's,
# and this file's own `skewed` and `seed_whole`. Groups run in parallel.
GROUPS = {
  'axes': {
    'data 8': (_AUTO | _mesh(data=8), {}),
    'fsdp 8': (_mesh(fsdp=8), {}),
    'fsdp 8, ZeRO-1': (_mesh(fsdp=8, zero=1), {}),
    'tensor 4': (_mesh(tensor=4), {}),
    'data 2, expert 2, tensor 2': (_mesh(data=2, expert=2, tensor=2), {}),
    'microbatches 2': ({'train.microbatches': 2}, {}),
    'microbatches 4, on data 2': ({'train.microbatches': 4} | _mesh(data=2), {}),
    'remat full': ({'model.remat': 'full'}, {}),
    'remat moe, on expert 2': ({'model.remat': 'moe'} | _mesh(expert=2), {}),
  },
  'experts': {
    'expert 8': (_AUTO | _mesh(expert=8), {}),
    'expert 8, all-gather': (_mesh(expert=8, transport='all_gather'), {}),
    'expert 4, ragged': (_mesh(expert=4, transport='ragged'), {}),
    'expert 4, fsdp 2, ZeRO-1': (_mesh(expert=4, fsdp=2, zero=1), {}),
    'skewed, expert 8': (_mesh(expert=8, receive_buffer=1.0), {'skewed': True}),
    'skewed, expert 4, ragged': (
      _mesh(expert=4, receive_buffer=1.0, transport='ragged'),
      {'skewed': True},
    ),
    'fewer experts than devices': (_mesh(expert=8), _FEW),
    'as many experts as devices': (_mesh(expert=8), _EIGHT),
    'hash router, expert 8': (_mesh(expert=8), {'moe.router': 'hash'}),
  },
  'stages': {
    'stage 4': ({'train.microbatches': 4} | _mesh(stage=4), {}),
    'stage 4, one microbatch': (_mesh(stage=4), {}),
    'stage 2, expert 2, fsdp 2': ({'train.microbatches': 2} | _mesh(stage=2, expert=2, fsdp=2), {}),
    'stage 4, fsdp 2, uneven, a dense layer': (
      {'train.microbatches': 4} | _mesh(stage=4, fsdp=2),
      _UNEVEN,
    ),
    'stage 2, tensor 2, batch scope': (
      {'train.microbatches': 4} | _mesh(stage=2, tensor=2),
      {'moe.balance_scope': 'batch', 'seed_whole': 6},  # with 5 two experts come out equal
    ),
  },
  'balancing': {
    'sigmoid, loss-free, expert 8': (
      _mesh(expert=8),
      _LOSS_FREE | {'moe.router': 'sigmoid', 'moe.normalize_gates': True, 'moe.gate_scale': 2.0},
    ),
    'loss-free, stage 2, fsdp 2': ({'train.microbatches': 4} | _mesh(stage=2, fsdp=2), _LOSS_FREE),
    'quantile, data 4, microbatches 2': (
      {'train.microbatches': 2} | _mesh(data=4),
      {'moe.balancing': 'quantile'},
    ),
    'device limit, expert 2, tensor 2': (_mesh(expert=2, tensor=2), {'moe.device_limit': 2}),
  },
  'gates': {
    'adaptive K, gated shared, expert 4, tensor 2': (_mesh(expert=4, tensor=2), _GATES),
    'adaptive K, gated shared, stage 2, fsdp 2': (
      {'train.microbatches': 4} | _mesh(stage=2, fsdp=2),
      _GATES,
    ),
    'unequal experts, expert 4, tensor 2, ragged': (
      _AUTO | _mesh(expert=4, tensor=2, transport='ragged'),
      _UNEQUAL,
    ),
    'unequal experts, stage 2, fsdp 2': (
      {'train.microbatches': 4} | _mesh(stage=2, fsdp=2),
      _UNEQUAL,
    ),
  },
}


def trajectory(config: Config, skewed: bool, seed: int = _SEED) -> tuple[dict, list[dict]]:
  """Returns the gradients of the first step and the metrics of every step.
  The gradients are clipped: they are Adam's first moments after the step, up to a factor.
  """
  devices = int(np.prod([getattr(config.mesh, axis) for axis in mesh_lib.AXES]))
  mesh = mesh_lib.make_mesh(config, jax.devices()[:devices])
  batch = packed_batch(config, padding_row=True)
  if skewed:  # in the first layer most tokens go to the same experts
    same_BL = np.random.default_rng(1).random(batch.tokens_BL.shape) < 0.9
    batch = batch._replace(tokens_BL=np.where(same_BL, 7, batch.tokens_BL))
  with mesh_lib.use(mesh, config.mesh.zero):
    shapes = jax.eval_shape(lambda: init_state(config))
    where = shardings(config, mesh, shapes)
    state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    state = jax.device_put(
      state.replace(params=_params(shapes.params, config.model.init_std, seed)), where
    )
    batch = place_whole(batch, mesh)
    numbers = jax.device_put(hyperparameters(config), replicated(mesh))
    step = jax.jit(make_train_step(config), out_shardings=(where, None))
    step = step.lower(state, batch, numbers).compile()
    state, metrics = step(state, batch, numbers)
    gradients = jax.device_get(state.optimizer_state[0].mu)
    history = [jax.device_get(metrics)]
    for _ in range(STEPS - 1):
      state, metrics = step(state, batch, numbers)
      history.append(jax.device_get(metrics))
  return gradients, history


def _params(shapes, scale, seed):
  generator = np.random.default_rng(seed)

  def draw(path, leaf):
    if path[-1].key == 'scale':
      return np.ones(leaf.shape, np.float32)
    return generator.normal(0, scale, leaf.shape).astype(np.float32)

  return jax.tree_util.tree_map_with_path(draw, shapes)


def distance(tree, truth) -> tuple[float, str]:
  """Returns the largest difference in any array, relative to that array's largest magnitude in
  `truth`, and the array's name.
  """
  found = {'': 0.0}

  def compare(path, a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    found[jax.tree_util.keystr(path)] = float(
      np.abs(a - b).max(initial=0) / max(np.abs(b).max(initial=0), 1e-30)
    )

  jax.tree_util.tree_map_with_path(compare, tree, truth)
  worst = max(found, key=found.get)
  return found[worst], worst


def _emulated_ragged(rows, output, first, sent, to, received, *, axis_name):
  """Emulates lax.ragged_all_to_all, which XLA lacks on CPUs, by an all-gather:
  sender s writes its part for me at to_s[me].
  """
  del received
  me = lax.axis_index(axis_name)
  rows, first, sent, to = (lax.all_gather(x, axis_name) for x in (rows, first, sent, to))
  slot_R = jnp.arange(output.shape[0])
  for s in range(rows.shape[0]):
    within_R = slot_R - to[s, me]
    mine_R = (within_R >= 0) & (within_R < sent[s, me])
    source_R = jnp.where(mine_R, first[s, me] + within_R, 0)
    output = jnp.where(mine_R[:, None], rows[s][source_R], output)
  return output


@contextlib.contextmanager
def ragged_emulated() -> Iterator[None]:
  """Lets programs traced inside take the ragged transport on CPUs too."""
  with (
    mock.patch.object(lax, 'ragged_all_to_all', _emulated_ragged),
    mock.patch.object(exchange, 'platform', lambda: 'tpu'),
  ):
    yield


def made_of(group: str, name: str, whole: bool) -> str:
  """Names a case's settings, its seed included: 8 hexadecimal digits."""
  changed, shared = GROUPS[group][name]
  of_first_names = lambda values: {first_name(key): value for key, value in values.items()}
  settings = [
    *map(of_first_names, (_settings(shared, whole), changed, shared)),
    _seed(shared, whole),
  ]
  return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


def _settings(shared, whole):
  return (
    _COMMON
    | (_WHOLE if whole else _NARROW)
    | {key: value for key, value in shared.items() if '.' in key}
  )


def _seed(shared, whole):
  return shared.get('seed_whole', _SEED_WHOLE) if whole else _SEED


def measure(group: str, name: str, whole: bool = False) -> dict:
  """Returns how far a case is from one device in gradients, first step, losses and all metrics,
  the exchange's rounds, and how far one device's loss fell.
  """
  changed, shared = GROUPS[group][name]
  with ragged_emulated():
    gradients, history = _trained(shared, {'mesh.transport': 'padded', **changed}, whole)
  true_gradients, true_history = _truth(json.dumps(shared), whole)
  common = [{k: step[k] for k in truth} for step, truth in zip(history, true_history, strict=True)]
  rounds = history[0].get('exchange_rounds_N')
  losses, true_losses = ([step['loss'] for step in steps] for steps in (common, true_history))
  return {
    'case': name,
    'gradients': distance(gradients, true_gradients),
    'first_step': distance(common[0], true_history[0]),
    'loss': distance(losses, true_losses),
    'trajectory': distance(common, true_history),
    'rounds': None if rounds is None else [int(r) for r in rounds],
    'loss_fell': float(true_losses[0] - true_losses[-1]),
    'of': made_of(group, name, whole),
  }


def check(group: str, name: str) -> dict:
  """Returns `measure` of a case, which must match one device's training to within 1e-5."""
  record = measure(group, name)
  assert record['loss_fell'] > 0.1  # the steps do train
  for what in ('gradients', 'first_step', 'loss', 'trajectory'):
    assert record[what][0] <= 1e-5, (what, record)
  return record


@functools.cache
def _truth(shared: str, whole: bool):
  """Returns one device's trajectory under the settings a case shares with it, given as JSON."""
  return _trained(json.loads(shared), {}, whole)


def _trained(shared, changed, whole):
  config = proxy.get_config('deepseek_moe')
  config.update_from_flattened_dict(_settings(shared, whole))
  config.update_from_flattened_dict(changed)
  return trajectory(from_config_dict(config), 'skewed' in shared, _seed(shared, whole))


def main(group: str, *options: str) -> None:
  jax.config.update('jax_platforms', 'cpu')
  jax.config.update('jax_num_cpu_devices', 8)
  for name in GROUPS[group]:
    print(json.dumps(measure(group, name, whole='--whole' in options)), flush=True)


if __name__ == '__main__':
  main(*sys.argv[1:])
