"""A study that takes seconds; its first run fails because it needs more devices than there are."""

from experiments.studies.common import Run

_MEASURED = {
  'masked': {'masked_share': 0.25},
  'shared off': {'without_shared': True, 'experts_per_token': 3},
}
_SHORT = {
  'train.num_steps': 24,
  'evaluation.every_steps': 12,
  'checkpoint.every_steps': 12,
  'data.holdout': 0.15,
}


def sweep(scale):
  del scale
  config = 'tests/launch/runs/config.py'
  return [
    Run('too large', config, {**_SHORT, 'mesh.data': 64, 'moe.num_experts': 5}),
    Run('top 2', config, _SHORT, _MEASURED, measures=('specialisation', 'recall')),
    Run('top 1', config, {**_SHORT, 'moe.experts_per_token': 1}),
    Run('the same', config, {**_SHORT, 'moe.experts_per_token': 2, 'name': 'another'}),
  ]
