"""The training loss by domain against sums over rows, on one device and on meshes of eight."""

import jax
import numpy as np
import pytest

from moe.losses.cross_entropy import token_losses
from moe.metrics.domains import loss_by_domain
from moe.parallel import mesh as mesh_lib
from moe.parallel.feeding import place_whole
from moe.parameters import shardings
from moe.train_step import forward, loss_and_gradients
from tests.small import packed_batch, small_config, small_params

pytestmark = pytest.mark.usefixtures('quick_compile')

# The domain of each row, by its number in NAMES. 'none' has no row, 'padding' only the row of
# padding.
DOMAIN_OF_ROW = [0, 0, 3, 0, 3, 3, 3, 2]
NAMES = ('a', 'none', 'padding', 'b')


def _batch(config):
  domains_BJ = np.eye(4, dtype=np.float32)[DOMAIN_OF_ROW]
  return packed_batch(config, padding_row=True)._replace(domains_BJ=domains_BJ)


def _config(**changes):
  common = {'data.batch_size': 8, 'mesh.data': 1, 'ops.implementation': 'reference'}
  return small_config(**common | changes)


def _truth(config):
  """{domain: mean loss of its targets} in float64, from the loss of every token."""
  params, batch = small_params(config), _batch(config)

  @jax.jit
  def run(params):
    hidden_BLD = forward(config, params, batch)[0]
    return token_losses(hidden_BLD, params['head'], batch.targets_BL, config.train.loss_chunk)

  losses_BL, weights_BL = np.asarray(run(params), np.float64), batch.weights_BL
  mean = lambda rows: (losses_BL * weights_BL)[rows].sum() / weights_BL[rows].sum()
  rows = np.array(DOMAIN_OF_ROW)
  return {'a': mean(rows == 0), 'b': mean(rows == 3)}


@pytest.mark.parametrize(
  'changes',
  [
    {},
    {'train.microbatches': 4},
    {'mesh.data': 2, 'mesh.expert': 2, 'mesh.tensor': 2},
    {'mesh.fsdp': 8},
    {'mesh.data': 4, 'mesh.stage': 2, 'train.microbatches': 2},
    {'mesh.stage': 2, 'mesh.tensor': 2, 'mesh.fsdp': 2, 'train.microbatches': 2},
  ],
  ids=str,
)
def test_loss_by_domain(changes):
  config = _config(**changes)
  size = int(np.prod([getattr(config.mesh, axis) for axis in mesh_lib.AXES]))
  mesh = mesh_lib.make_mesh(config, jax.devices()[:size])
  with mesh_lib.use(mesh, config.mesh.zero):
    params = small_params(config)
    params = jax.device_put(params, shardings(config, mesh, params))
    run = jax.jit(lambda params, batch: loss_and_gradients(config, params, batch)[1])
    metrics = jax.device_get(run(params, place_whole(_batch(config), mesh)))
  weights_J = metrics['domain_targets_J']
  assert metrics['domain_loss_J'].sum() / weights_J.sum() == pytest.approx(metrics['loss'], 1e-6)
  found = loss_by_domain(metrics, NAMES)
  assert found == {'loss_by_domain': pytest.approx(_truth(_config()), 1e-5)}
  assert not {'domain_loss_J', 'domain_targets_J'} & metrics.keys()


def test_a_batch_that_does_not_tell_has_no_such_metrics():
  config = _config()
  batch = _batch(config)._replace(domains_BJ=None)
  metrics = jax.eval_shape(lambda p: loss_and_gradients(config, p, batch)[1], small_params(config))
  assert 'loss' in metrics and not [name for name in metrics if 'domain' in name]
