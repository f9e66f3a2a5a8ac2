"""Tries all the extensions of docs/extending.md at once.
test_extending.py runs it on a copy of the library that has them.

python -m tests.extended FOLDER     # one JSON line
"""

import contextlib
import json
import os
import sys
import types
from pathlib import Path

os.environ['JAX_PLATFORMS'] = 'cpu'

import jax
import numpy as np

from experiments.studies import common
from experiments.sweeps import plan
from moe import accounting, analysis
from moe.checkpoint import Checkpointer
from moe.model import Transformer
from moe.optimizer import hyperparameters
from moe.parallel import feeding
from moe.parallel import mesh as mesh_lib
from moe.run import Run
from moe.train_step import init_state, make_train_step
from tests.small import packed_batch, small_config

STEPS = 4
OURS = {
  'moe.router': 'loss_free',
  'moe.bias_update_rate': 0.01,
  'moe.overload_weight': 0.5,
  'model.qk_norm': True,
  'optimizer.weight_decay': 0.5,  # large, to show what decays
  'optimizer.peak_lr': 0.01,
  'moe.expert_balance_weight': 0.0,
  'ops.implementation': 'reference',
  'mesh.data': 1,
}
SPREAD = {'mesh.stage': 2, 'mesh.expert': 2, 'train.microbatches': 2}
LION = {'optimizer.name': 'lion', 'optimizer.weight_decay': 0.0}
TOKENIZER = types.SimpleNamespace(to_bytes=lambda: b'x', tokenizer_config=b'')


def train(config, steps, state=None):
  """(the states after each step, the metrics of each step), from the start or from `state`."""
  size = int(np.prod([getattr(config.mesh, axis) for axis in mesh_lib.AXES]))
  mesh = mesh_lib.make_mesh(config, jax.devices()[:size])
  states, history = [], []
  with mesh_lib.use(mesh, config.mesh.zero):
    state = state or jax.jit(lambda: init_state(config))()
    step = jax.jit(make_train_step(config))
    for number in steps:
      batch = feeding.place_whole(packed_batch(config, number), mesh)
      state, metrics = step(state, batch, hyperparameters(config))
      states.append(jax.device_get(state))
      history.append(jax.device_get(metrics))
  return states, history


def farthest(tree, truth):
  """The largest difference between two trees' common leaves, and the leaf that has it."""
  flat = lambda x: {jax.tree_util.keystr(p): v for p, v in jax.tree_util.tree_leaves_with_path(x)}
  truth = flat(truth)
  found = {
    name: float(np.abs(np.asarray(value, np.float64) - truth[name]).max())
    for name, value in flat(tree).items()
    if name in truth
  }
  worst = max(found, key=found.get)
  return found[worst], worst


def gone_on(config, states, folder):
  """The metrics after step 2 of a run that is saved at step 2, restored and trained on."""
  with contextlib.closing(Checkpointer(folder, config, TOKENIZER)) as checkpointer:
    checkpointer.save(2, states[1], {}, None)
    checkpointer.wait(2)
    restored = checkpointer.restore_newest()
  return train(config, range(2, STEPS), restored.state)[1]


def main(folder):
  jax.config.update('jax_num_cpu_devices', 4)
  jax.config.update('jax_disable_most_optimizations', True)
  config = small_config(**OURS)
  states, history = train(config, range(STEPS))
  accounting.check(config, states[0].params)
  biases = np.array([state.params['moe_blocks']['moe']['router']['bias'] for state in states])
  counts = np.array([step['expert_counts_NE'] for step in history])
  by_rule = np.cumsum(0.01 * np.sign(counts.mean(axis=2, keepdims=True) - counts), axis=0)
  choices = jax.device_get(
    analysis.routing(
      config, states[-1].params, packed_batch(config), analysis.Intervention(masked_share=1 / 3)
    )
  )
  run, ids = Run(Transformer(config), states[-1].params, None, config, STEPS), [[1, 2, 3], [4] * 9]
  routing = run.routing(ids, affinities=True)
  replayed = [each.logits_LV for each in run.replay(ids, routing)]
  masked = run.intervene(masked_share=1 / 3)
  as_masked = [each.logits_LV for each in run.replay(ids, masked.routing(ids))]
  spread = train(small_config(**OURS | SPREAD), range(STEPS))
  lion, logged = train(small_config(**OURS | LION), range(1))
  start = jax.device_get(jax.jit(lambda: init_state(config))()).params['head']
  moved = np.abs(lion[0].params['head'] - start)
  print(
    json.dumps(
      {
        'metrics': sorted(history[-1]),
        'spread_metrics': farthest(spread[1], history),
        'spread_params': farthest(spread[0][-1].params, states[-1].params),
        'resumed': farthest(gone_on(config, states, Path(folder)), history[2:]),
        'bias': farthest(biases, by_rule),
        'bias_moved': float(np.abs(biases).max()),
        'gates': farthest(choices.gates_NBLK.sum(axis=-1), np.ones(choices.gates_NBLK.shape[:3])),
        'replayed': farthest(replayed, run.logits(ids)),
        'replayed_masked': farthest(as_masked, masked.logits(ids)),
        'affinities': max(float(each.affinities_NLE.max()) for each in routing),
        'lion': [float(moved.min()), float(moved.max()), float(logged[0]['learning_rate'])],
        'study': [
          f'{job.label}: {job.config.optimizer.name}'
          for job in plan.jobs(
            plan.load('experiments/studies/lion.py'), common.PROXY, [0], {}, Path(folder)
          )
        ],
        'overload': [float(step['loss/overload']) for step in history],
        'counted': accounting.account(config).total_params
        - accounting.account(small_config()).total_params,
      }
    )
  )


if __name__ == '__main__':
  main(*sys.argv[1:])
