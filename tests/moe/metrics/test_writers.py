"""metrics.jsonl and the writers beside it, with numbers made by hand."""

import json

import numpy as np
import pytest

from moe import config as moe_config
from moe.errors import UserError
from moe.metrics import writers
from moe.metrics.writers import MetricWriter

METRICS = {
  'loss': np.float32(2.5),
  'max_vio_N': np.array([0.5, 1.0]),
  'held_out_loss_by_domain': {'code': 2.0, 'docs': float('nan')},
  'expert_load_NE': np.array([[0.12345, 1.9], [1.0, 1.0]]),
}
SCALARS = {
  'loss': 2.5,
  'max_vio_N/layer_0': 0.5,
  'max_vio_N/layer_1': 1.0,
  'held_out_loss_by_domain/code': 2.0,
  'held_out_loss_by_domain/docs': None,
}


class Kept:
  """A writer that keeps what it is given."""

  def __init__(self):
    self.written, self.loads, self.closed = [], [], False

  def write(self, step, metrics):
    self.written.append((step, dict(metrics)))

  def write_expert_load(self, step, load_NE):
    self.loads.append((step, load_NE.shape))

  def close(self):
    self.closed = True


def config(names):
  flat = moe_config.defaults()
  with flat.ignore_type():
    flat.update_from_flattened_dict({'train.writers': names})
  return moe_config.from_config_dict(flat)


def lines(folder):
  return [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]


def test_every_writer_gets_the_same_scalars_and_the_load_only_where_it_is_asked_for(
  tmp_path, monkeypatch
):
  kept = Kept(), Kept()
  made = dict(zip(('one', 'two'), kept))
  monkeypatch.setattr(
    writers,
    'WRITERS',
    {name: lambda *_, each=each: each for name, each in made.items()},
  )
  writer = MetricWriter(config('one, two'), tmp_path, 0)
  writer.write(1, METRICS)
  writer.write(2, METRICS, heatmap=True)
  writer.amend(2, {'held_out_loss': 1.5})
  writer.close()
  for each in kept:
    assert each.written == [(1, SCALARS), (2, SCALARS), (2, {'held_out_loss': 1.5})]
    assert each.loads == [(2, (2, 2))] and each.closed
  first, second = lines(tmp_path)
  assert first == {
    'step': 1,
    'loss': 2.5,
    'max_vio_N': [0.5, 1.0],
    'held_out_loss_by_domain': {'code': 2.0, 'docs': None},
  }
  load = {'expert_load_NE': [[0.123, 1.9], [1.0, 1.0]]}
  assert second == {**first, 'step': 2, **load, 'held_out_loss': 1.5}


def test_without_writers_there_is_metrics_jsonl_alone(tmp_path):
  writer = MetricWriter(config(''), tmp_path, 0)
  writer.write(1, METRICS, heatmap=True)
  writer.close()
  assert [path.name for path in tmp_path.iterdir()] == ['metrics.jsonl']


def test_a_writer_that_does_not_exist_is_named():
  with pytest.raises(
    UserError, match=r"train\.writers=tensorbord.*'tensorbord'.*tensorboard, wandb"
  ):
    writers.chosen('tensorbord')


def test_weights_and_biases_offline(tmp_path, monkeypatch):
  wandb = pytest.importorskip('wandb')
  monkeypatch.setenv('WANDB_MODE', 'offline')
  for step in (1, 2):  # opened twice, as when a run is resumed
    writer = MetricWriter(config('wandb'), tmp_path, step - 1)
    writer.write(step, METRICS, heatmap=True)
    writer.close()
  wandb.teardown()  # waits until wandb's own process has written everything
  runs = sorted(tmp_path.glob('wandb/offline-run-*/*.wandb'))
  assert len(runs) == 2 and len({path.name for path in runs}) == 1
  for path in runs:
    content = path.read_bytes()
    assert all(name.encode() in content for name in ('max_vio_N/layer_1', 'expert_load'))
    assert b'num_shared_experts' in content  # the config is stored, too
  assert len(list(tmp_path.glob('wandb/offline-run-*/files/media/images/*.png'))) == 2
