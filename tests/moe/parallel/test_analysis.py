"""Interventions and counts of choices give the same on four devices,
which share the parameters and the batch, as on one.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe import analysis
from moe.analysis import TOKEN_CLASSES, Intervention, probes, redundancy
from moe.losses.cross_entropy import token_losses
from moe.parallel import mesh as mesh_lib
from moe.parallel.feeding import place_whole
from moe.parameters import shardings
from tests.moe.parallel.cases import distance
from tests.small import HeldOut, packed_batch, small_config, small_params

INTERVENTION = Intervention(masked_share=1 / 6, experts_per_token=3, without_shared=True)


def measure(config, params, batch):
  """Returns the tokens' losses, the statistics, the choices and the counts."""
  class_V = np.arange(config.model.vocab_size, dtype=np.int32) % len(TOKEN_CLASSES)
  hidden_BLD, (stats, *_) = analysis.forward(config, params, batch, INTERVENTION)
  choices = analysis.routing(config, params, batch, INTERVENTION)
  # Padding's choices mean nothing, and differ between meshes: split experts add nothing to padding.
  of_tokens = lambda x_NBLK: jnp.where(choices.is_token_BL[None, :, :, None], x_NBLK, 0)
  return {
    'losses': token_losses(hidden_BLD, params['head'], batch.targets_BL, config.train.loss_chunk)
    * batch.weights_BL,
    'statistics': stats,
    'choices': choices._replace(
      experts_NBLK=of_tokens(choices.experts_NBLK), gates_NBLK=of_tokens(choices.gates_NBLK)
    ),
    'counts': analysis.count(config, params, batch, class_V, INTERVENTION),
  }


@pytest.mark.usefixtures('quick_compile')
def test_probes_and_redundancy_of_parameters_on_a_mesh(monkeypatch):
  """Both take a mesh explicitly here, since a sweep scores on one device."""
  batch = packed_batch(small_config())
  held_out = lambda data, config, mesh, *_: [('a', place_whole(batch, mesh))]
  monkeypatch.setattr(redundancy, 'held_out_batches', held_out)
  data = HeldOut(a=np.random.default_rng(0).integers(4, small_config().model.vocab_size, (6, 40)))

  def asked(config, params, mesh):
    found = redundancy.measure(config, params, None, pairs=2, mesh=mesh)
    return found, probes.losses(config, params, data, rows=5, mesh=mesh)

  common = {'ops.implementation': 'reference', 'mesh.data': 1}
  config = small_config(**common)
  params = small_params(config)
  replaced, losses = asked(config, params, None)
  config = small_config(**common, **{'mesh.fsdp': 2, 'mesh.expert': 2})
  mesh = mesh_lib.make_mesh(config, jax.devices()[:4])
  with mesh_lib.use(mesh, config.mesh.zero):
    params = jax.device_put(params, shardings(config, mesh, params))
    spread, spread_losses = asked(config, params, mesh)
  assert spread_losses == pytest.approx(losses, rel=1e-5)
  np.testing.assert_array_equal(spread.others_NX, replaced.others_NX)
  np.testing.assert_allclose(spread.substituted_NX, replaced.substituted_NX, atol=2e-6)


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
    changed, kept, _ = analysis.apply(config, params, INTERVENTION)
    spread = jax.jit(functools.partial(measure, config))(params, place_whole(batch, mesh))
  measured, where = distance(jax.device_get(spread), truth)
  assert measured <= 1e-5, where
  # Experts stay split, and each device has one row of the four.
  experts = kept['moe_blocks']['moe']['experts']
  assert all('expert' in str(experts[name].sharding.spec) for name in ('gate', 'down'))
  assert changed.moe.num_shared_experts == 0
  experts_NBLK = spread['choices'].experts_NBLK
  assert experts_NBLK.sharding.shard_shape(experts_NBLK.shape)[1] == 1
