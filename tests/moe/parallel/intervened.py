"""A small model under an intervention, its parameters and batch over four devices, beside one device; run by
test_specialization.py in a process of its own, since the number of devices is fixed once JAX has started.

  python -m tests.moe.parallel.intervened   # one JSON line: how far what the mesh gives is from one device, relative
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np

from moe import analysis as specialization
from moe.analysis import TOKEN_CLASSES, Intervention
from moe.losses.cross_entropy import token_losses
from moe.parallel import mesh as mesh_lib
from tests.moe.parallel.cases import distance
from tests.small import packed_batch, small_config, small_params

INTERVENTION = Intervention(masked_share=1 / 6, experts_per_token=3, without_shared=True)


def measure(config, params, batch):
  """Losses of the tokens, statistics, choices and counts."""
  class_V = np.arange(config.model.vocab_size, dtype=np.int32) % len(TOKEN_CLASSES)
  hidden_BLD, stats = specialization.forward(config, params, batch, INTERVENTION)
  choices = specialization.routing(config, params, batch, INTERVENTION)
  # Those of padding say nothing, and differ: where experts are split, they add nothing to it.
  of_tokens = lambda x_NBLK: jnp.where(choices.is_token_BL[None, :, :, None], x_NBLK, 0)
  return {
    'losses': token_losses(hidden_BLD, params['head'], batch.targets_BL, config.train.loss_chunk)
    * batch.weights_BL,
    'statistics': stats,
    'choices': choices._replace(
      experts_NBLK=of_tokens(choices.experts_NBLK), gates_NBLK=of_tokens(choices.gates_NBLK)
    ),
    'counts': specialization.count(config, params, batch, class_V, INTERVENTION),
  }


def main() -> None:
  jax.config.update('jax_platforms', 'cpu')
  jax.config.update('jax_num_cpu_devices', 4)
  jax.config.update('jax_disable_most_optimizations', True)
  common = {'ops.implementation': 'reference', 'mesh.data': 1}
  config = small_config(**common)
  params, batch = small_params(config), packed_batch(config)
  truth = jax.device_get(jax.jit(functools.partial(measure, config))(params, batch))

  config = small_config(**common, **{'mesh.fsdp': 2, 'mesh.expert': 2})
  mesh = mesh_lib.make_mesh(config)
  with mesh_lib.use(mesh, config.mesh.zero):
    params = jax.device_put(params, mesh_lib.shardings(mesh, params))
    changed, kept, _ = specialization.apply(config, params, INTERVENTION)
    same = [kept['moe_blocks']['moe']['experts'][name].sharding.spec for name in ('gate', 'down')]
    spread = jax.jit(functools.partial(measure, config))(params, mesh_lib.place_whole(batch, mesh))
    rows = spread['choices'].experts_NBLK.sharding.shard_shape(
      spread['choices'].experts_NBLK.shape
    )[1]
    measured = jax.device_get(spread)
  print(
    json.dumps(
      {
        'distance': distance(measured, truth),
        'experts_stay_split': all('expert' in str(spec) for spec in same)
        and changed.moe.num_shared_experts == 0,
        'rows_a_device': rows,
      }
    )
  )


if __name__ == '__main__':
  main()
