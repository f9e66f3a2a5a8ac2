"""Interventions and counts of choices on parameters and a batch that four devices share:
as on one device.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe import analysis as specialization
from moe.analysis import TOKEN_CLASSES, Intervention
from moe.losses.cross_entropy import token_losses
from moe.parallel import mesh as mesh_lib
from moe.parallel.feeding import place_whole
from moe.parameters import shardings
from tests.moe.parallel.cases import distance
from tests.small import packed_batch, small_config, small_params

INTERVENTION = Intervention(masked_share=1 / 6, experts_per_token=3, without_shared=True)


def measure(config, params, batch):
  """Losses of the tokens, statistics, choices and counts."""
  class_V = np.arange(config.model.vocab_size, dtype=np.int32) % len(TOKEN_CLASSES)
  hidden_BLD, (stats, *_) = specialization.forward(config, params, batch, INTERVENTION)
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


@pytest.mark.usefixtures('quick_compile')
def test_sharded_is_unsharded():
  common = {'ops.implementation': 'reference', 'mesh.data': 1}
  config = small_config(**common)
  params, batch = small_params(config), packed_batch(config)
  truth = jax.device_get(jax.jit(functools.partial(measure, config))(params, batch))

  config = small_config(**common, **{'mesh.fsdp': 2, 'mesh.expert': 2})
  mesh = mesh_lib.make_mesh(config, jax.devices()[:4])
  with mesh_lib.use(mesh, config.mesh.zero):
    params = jax.device_put(params, shardings(config, mesh, params))
    changed, kept, _ = specialization.apply(config, params, INTERVENTION)
    spread = jax.jit(functools.partial(measure, config))(params, place_whole(batch, mesh))
  measured, where = distance(jax.device_get(spread), truth)
  assert measured <= 1e-5, where
  # Experts stay split, and each device has one row of the four.
  experts = kept['moe_blocks']['moe']['experts']
  assert all('expert' in str(experts[name].sharding.spec) for name in ('gate', 'down'))
  assert changed.moe.num_shared_experts == 0
  experts_NBLK = spread['choices'].experts_NBLK
  assert experts_NBLK.sharding.shard_shape(experts_NBLK.shape)[1] == 1
