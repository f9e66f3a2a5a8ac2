"""Makes one line of runs.jsonl of a finished run, from what its folder holds."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from experiments.sweeps import ledger, machine, plan, texts
from experiments.sweeps.job import logged
from moe.accounting import account
from moe.errors import UserError
from moe.storage import provenance

SCORES = 'scores.json'  # in a run's folder
_POINTS, _FEW_POINTS = 200, 50  # at most, of a loss curve and of a MaxVio curve


def make(
  study: str, run: plan.Run, job: plan.Job, scale: str, differs: Sequence[str]
) -> dict[str, object]:
  """The line, with all of ledger.FIELDS. `differs`:
  the keys that are not the same in all runs of the study.

  The losses of a run that has diverged are NaN. UserError for any other run that was not logged
  or scored to its end.
  """
  metrics = job.metrics()
  scores = _scores_of_diverged(job) if not job.trained and job.diverged else _scores(job)
  config, counts = job.values, account(job.config)
  tokens = job.num_steps * job.config.data.batch_size * job.config.data.seq_len
  final = _find(scores, scores['final_step'], {})
  best = _find(scores, scores['best_step'], {})
  return {
    'format': ledger.FORMAT,
    'study': study,
    'run': run.name,
    'seed': job.seed,
    'config_hash': job.config_hash,
    'scale': scale,
    'config': run.config,
    'differs': {key: config[key] for key in differs},
    'settings': plan.settings(job.config, job.origin),
    # The checkpoint that its weights started from; None: its own initial ones.
    'init_from': provenance.source(job.workdir),
    'commit': ', '.join(machine.commits(job.workdir)) or 'unknown',
    'data': _data(job),
    # The machine that scored it; with --launcher=local it also trained it.
    'machine': scores['machine'],
    'steps': job.num_steps,
    'tokens': tokens,
    'seconds': round(seconds(metrics, job), 1),
    'total_params': counts.total_params,
    'active_params': counts.active_params,
    'train_flops': counts.train_flops_per_token * tokens,
    'final': {'step': scores['final_step'], 'total': final['total'], 'domains': final['domains']},
    'best': {'step': scores['best_step'], 'total': best['total'], 'domains': best['domains']},
    'evaluations': {
      name: {'intervention': dict(intervention)}
      | {
        key: _find(scores, scores['final_step'], dict(intervention))[key]
        for key in ('total', 'domains')
      }
      for name, intervention in run.evaluations.items()
    },
    # For a run that trains another's weights on other text (transfer.py), else None.
    'transfer': scores.get('transfer'),
    'max_vio': _max_vio(metrics, job.num_steps),
    'max_vio_curve': _max_vio_curve(metrics),
    'dead_experts': _dead_experts(metrics[-1]),
    'idle_experts': _over_last_tenth(_dead_experts, metrics, job.num_steps),
    # On held-out text, over the layer's mean: one row per MoE layer.
    'expert_load': final['expert_load'],
    # On held-out text, by domain, name and layer.
    'readings': final.get('readings'),
    'mean_readings': final.get('mean_readings'),
    'measures': {name: scores['measures'][name] for name in run.measures},
    'loss_curve': thinned([(line['step'], line['loss']) for line in metrics]),
    'held_out_curve': [
      (line['step'], line['held_out_loss']) for line in metrics if 'held_out_loss' in line
    ],
  }


def taken(
  found: Sequence[Mapping[str, object]],
  study: str,
  run: plan.Run,
  job: plan.Job,
  differs: Sequence[str],
) -> dict[str, object] | None:
  """This run's line, made from a line in `found`, those of other studies, that is of the very same
  run: the same settings, seed and text, with all evaluations and measures asked for. None if there
  is none, or if the text is not prepared, so that it cannot be compared.

  None also for a run from another's weights: its settings do not tell what these contain.
  """
  data, flat = _data(job), job.values
  if job.config.train.init_from:
    return None
  wanted = {name: _key(intervention) for name, intervention in run.evaluations.items()}
  # Older lines, which lack fields that were not measured yet, come last.
  for other in sorted(found, key=len, reverse=True):
    same = (other['config_hash'], other['seed'], other.get('data')) == (
      job.config_hash,
      job.seed,
      data,
    )
    if not data or not same:
      continue
    made = {_key(each['intervention']): each for each in other['evaluations'].values()}
    measured = other.get('measures') or {}
    if made.keys() >= set(wanted.values()) and measured.keys() >= set(run.measures):
      return {
        **other,
        'study': study,
        'run': run.name,
        'config': run.config,
        'differs': {key: flat[key] for key in differs},
        'evaluations': {name: made[key] for name, key in wanted.items()},
        'measures': {name: measured[name] for name in run.measures},
      }
  return None


def _key(intervention):
  return tuple(sorted(intervention.items()))


def seconds(metrics: Sequence[dict], job: plan.Job) -> float:
  """The time of the steps themselves: without compiling, evaluating and saving,
  and without steps that were repeated after a kill.
  """
  tokens, total, before = job.config.data.batch_size * job.config.data.seq_len, 0.0, 0
  for line in metrics:
    total += (line['step'] - before) * tokens / line['tokens_per_second']
    before = line['step']
  return total


def thinned(
  points: Sequence[tuple[int, float | None]], most: int = _POINTS
) -> list[tuple[int, float | None]]:
  """At most `most` points, each the last step and the mean of a group of neighbours.
  The mean is None if one of them was not finite.
  """
  groups = np.array_split(np.arange(len(points)), min(len(points), most))
  mean = lambda values: None if None in values else round(float(np.mean(values)), 5)
  return [(points[group[-1]][0], mean([points[i][1] for i in group])) for group in groups]


def _data(job):
  """A name of the contents of the prepared text, which the config knows only by path;
  None if the text is no longer there.

  It depends on contents alone: the same text, prepared elsewhere from files of other names, is the
  same data.
  """
  if not plan.prepared(job):
    return None
  path = job.data_dir / 'metadata.json'
  # Only held-out text has a text_sha256.
  contents = ('documents', 'bytes', 'tokens', 'text_sha256')
  try:
    metadata = json.loads(path.read_text(encoding='utf-8'))
    splits = {
      f'{split} {domain}': [entry.get(key) for key in contents]
      for split, domains in metadata['splits'].items()
      for domain, entry in domains.items()
    }
    return texts.digest({'tokenizer': metadata['tokenizer']['sha256'], **splits})
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise UserError(
      f'{path} is damaged ({error}): delete {job.data_dir}, and it is prepared again'
    ) from error


def _max_vio(metrics, num_steps):
  """MaxVio as the mean over layers, at the end and over the last tenth of the steps.
  None for a model that routes nothing.
  """
  routed = _routed(metrics)
  if not routed:
    return None
  return {
    'final': _max_vio_of(routed[-1]),
    'last_tenth': _over_last_tenth(_max_vio_of, routed, num_steps),
  }


def _max_vio_curve(metrics):
  """MaxVio as (step, mean over layers), thinned. None for a model that routes nothing."""
  points = [(line['step'], _max_vio_of(line)) for line in _routed(metrics)]
  return thinned(points, _FEW_POINTS) if points else None


def _routed(metrics):
  return [line for line in metrics if 'max_vio_N' in line]


def _max_vio_of(line):
  # Lines logged before terms were named loss/NAME have max ÷ mean, without − 1.
  mean = _mean(line['max_vio_N'])
  return mean - 1 if mean is not None and 'balance_expert' in line else mean


def _dead_experts(line):
  """The number of experts, of all layers, that no token of the logged batch chose.
  None for a model that routes nothing.
  """
  return sum(line['dead_experts_N']) if 'dead_experts_N' in line else None


def _over_last_tenth(of, metrics, num_steps):
  return _mean([of(line) for line in metrics if line['step'] > 0.9 * num_steps])


def _mean(values):
  """The mean; None without values, and if one was not finite."""
  return None if not values or None in values else float(np.mean(values))


def _scores_of_diverged(job):
  """What experiments.sweeps.score would have written if there were anything to score."""
  step, lost = job.metrics()[-1]['step'], {'loss': math.nan, 'bits_per_byte': math.nan}
  interventions = [
    {},
    *(dict(intervention) for run in job.runs for intervention in run.evaluations.values()),
  ]
  scores = [
    {'step': step, 'intervention': each, 'total': lost, 'domains': {}, 'expert_load': None}
    for each in interventions
  ]
  return {
    'final_step': step,
    'best_step': step,
    'machine': machine.describe_without_device(),
    'scores': scores,
    'measures': {name: None for run in job.runs for name in run.measures},
  }


def read_scores(workdir: Path) -> dict:
  """What experiments.sweeps.score has written for a run. UserError if it is damaged."""
  path = workdir / SCORES
  try:
    content = json.loads(path.read_bytes().decode('utf-8'))
    for score in content['scores']:
      _ = (score['step'], score['intervention'], score['total'], score['domains'])
    _ = (content['final_step'], content['best_step'], content['machine'])
  except (ValueError, KeyError, TypeError) as error:
    raise UserError(
      f'{path} is damaged ({type(error).__name__}: {error}): delete it, and the run is scored again'
    ) from error
  return content


def best_step(workdir: Path, steps: list[int]) -> int:
  """The step of the checkpoint with the lowest held-out loss logged in training;
  the last of `steps` if none was logged.
  """
  losses = {
    each['step']: each['held_out_loss']
    for each in logged(workdir)
    if each.get('held_out_loss') is not None
  }
  return min((step for step in steps if step in losses), key=losses.get, default=steps[-1])


def _scores(job):
  if not (job.workdir / SCORES).exists():
    raise UserError(f'{job.workdir} was not scored')
  scores, metrics = read_scores(job.workdir), job.metrics()
  if scores['final_step'] != job.num_steps or not metrics or metrics[-1]['step'] != job.num_steps:
    raise UserError(
      f'{job.workdir} does not hold step {job.num_steps}, its last, whole: is its disk full?'
    )
  return scores


def _find(scores, step, intervention):
  for score in scores['scores']:
    if (score['step'], score['intervention']) == (step, intervention):
      return score
  raise UserError(f'step {step} with {intervention} was not scored')
