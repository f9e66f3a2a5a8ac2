"""Scores a trained run on all held-out text, by domain. launch.sweep starts it.

  python -m experiments.sweeps.score --workdir=DIR [--interventions=JSON] [--measures=NAME,NAME]
    [--start=DIR]

Writes DIR/scores.json: the scores of the last checkpoint, of the best by the held-out loss logged
in training, and of the last with each intervention. --interventions: a list of keyword arguments of
moe.analysis.Intervention.
--measures: what else to measure on the last checkpoint (measures.py).
--start: the run on other text that its weights started from; both are scored on the text of both
(transfer.py). Scores that are there already are kept.
"""

import json
import os
from pathlib import Path

from absl import flags

from experiments.sweeps import line
from moe import cli, host_memory

WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run.', required=True)
START = flags.DEFINE_string('start', None, 'Folder of the run that it started from.')
MEASURES = flags.DEFINE_list('measures', [], 'Of experiments/sweeps/measures.py.')
INTERVENTIONS = flags.DEFINE_string('interventions', '[]', 'JSON list of objects.')


def main(_):
  from experiments.sweeps import machine, transfer
  from experiments.sweeps.measures import MEASURE
  from moe.data.store import open_held_out
  from moe.run import data_directory, load_run
  from moe.storage.reading import available_steps

  workdir = Path(WORKDIR.value)
  run = load_run(workdir)
  data = open_held_out(data_directory(run.config, workdir), run.tokenizer)
  best = line.best_step(workdir, available_steps(workdir))
  path = workdir / line.SCORES
  there = line.read_scores(workdir) if path.exists() else {}
  scores, moved = there.get('scores', []), there.get('transfer')
  measured = there.get('measures', {})
  wanted = [
    (run.step, {}),
    (best, {}),
    *((run.step, intervention) for intervention in json.loads(INTERVENTIONS.value)),
  ]
  scored = [(score['step'], score['intervention']) for score in scores]
  # The best may be the last, and is then scored once.
  missing = [one for i, one in enumerate(wanted) if one not in scored and one not in wanted[:i]]
  if missing or set(MEASURES.value) - measured.keys():
    machine.note_commit(workdir, machine.commit())
  for name in MEASURES.value:
    if name not in measured:
      measured[name] = MEASURE[name](run, data)
      print(f'{name}: {json.dumps(measured[name])[:200]}', flush=True)
      if not missing:
        _write(path, there | {'measures': measured})
  if START.value is not None and moved is None:
    moved = transfer.measure(run, data, START.value)
    print(f'against {START.value}: {moved}', flush=True)
    if not missing:
      _write(path, there | {'transfer': moved, 'measures': measured})
  for step, intervention in missing:
    if run.step != step:
      run = load_run(workdir, step)
    scores.append({'step': step, 'intervention': intervention, **evaluate(run, data, intervention)})
    content = {
      'final_step': wanted[0][0],
      'best_step': best,
      'machine': machine.describe(),
      'scores': scores,
      'transfer': moved,
      'measures': measured,
    }
    _write(path, content)
    print(
      f'step {step} {intervention or ""}: held-out loss {scores[-1]["total"]["loss"]:.4f}',
      flush=True,
    )


def _write(path, content):
  temporary = path.with_suffix('.tmp')
  temporary.write_text(json.dumps(content), encoding='utf-8')
  os.replace(temporary, path)


def evaluate(run, data, intervention: dict) -> dict:
  """A run's scores on held-out text. 'total' and, by domain, 'domains': loss and bits per byte;
  'expert_load': by layer and expert, or None; 'readings': the means that layers measured, by
  domain, name and layer; 'mean_readings': the same over all tokens.
  """
  evaluation = run.intervene(**intervention).evaluate(data)
  numbers = lambda score: {'loss': score.loss, 'bits_per_byte': score.bits_per_byte}
  load_NE = evaluation.expert_load_NE
  return {
    'total': numbers(evaluation.total),
    'domains': {domain: numbers(score) for domain, score in evaluation.domains.items()},
    'expert_load': None
    if load_NE is None
    else [[round(float(load), 3) for load in layer] for layer in load_NE],
    'readings': {domain: _rounded(found) for domain, found in evaluation.readings.items()},
    'mean_readings': _rounded(evaluation.mean_readings),
  }


def _rounded(readings):
  return {name: [round(float(mean), 4) for mean in mean_N] for name, mean_N in readings.items()}


if __name__ == '__main__':
  cli.run(main, memory=host_memory.TRAINING)
