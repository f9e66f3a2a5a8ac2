"""RESULTS/STUDY/runs.jsonl: one line per finished run, the only source of a study's figures.

A line's key is (run, seed, config_hash): a new line replaces the old one of its key. Lines of a run
whose config has changed stay in the file and out of the figures: `current` gives only those whose
hash is that of the study as it is now.

`format` tells what a line's fields mean. FORMAT is what is written now; whoever changes the
meaning of a field raises it by one. A line without it is of format 1. Lines of an older format are
converted to today's when they are read:
2: max_vio is max load ÷ mean load − 1, 0 at balance; before it was max ÷ mean, 1 at balance.
"""

import contextlib
import fcntl
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from experiments.studies.common import PROXY, SCALES, Scale
from experiments.sweeps import jsonl, plan
from moe.errors import UserError, of_file

Key = tuple[str, int, str]
FORMAT = 2
FIELDS = (
  *('format', 'study', 'run', 'seed', 'config_hash', 'scale', 'config', 'differs', 'settings'),
  'init_from',
  *(
    'commit',
    'data',
    'machine',
    'steps',
    'tokens',
    'seconds',
    'total_params',
    'active_params',
    'train_flops',
  ),
  *(
    'final',
    'best',
    'evaluations',
    'transfer',
    'max_vio',
    'max_vio_curve',
    'dead_experts',
    'idle_experts',
    'expert_load',
    'readings',
    'mean_readings',
    'measures',
  ),
  *('loss_curve', 'held_out_curve'),
)
_KEY = ('run', 'seed', 'config_hash')
_SCORE = {'loss': jsonl.NUMBER_OR_NULL, 'bits_per_byte': jsonl.NUMBER_OR_NULL}
_SHAPE: jsonl.Shape = {
  'format': int,
  'study': str,
  'run': str,
  'seed': int,
  'config_hash': str,
  'commit': str,
  'data': (str, type(None)),
  'machine': {'*': str},
  'steps': int,
  'tokens': int,
  'seconds': jsonl.NUMBER,
  'total_params': int,
  'active_params': int,
  'train_flops': jsonl.NUMBER,
  'final': {'total': _SCORE},
  'best': {'total': _SCORE},
  'evaluations': {'*': {'intervention': {}, 'total': _SCORE}},
  'max_vio': (dict, type(None)),
  'dead_experts': jsonl.NUMBER_OR_NULL,
  'idle_experts': jsonl.NUMBER_OR_NULL,
  'expert_load': (list, type(None)),
}


def path(results: Path, study: str) -> Path:
  return results / study / 'runs.jsonl'


def read(file: Path) -> dict[Key, dict]:
  """The lines by key. UserError if one is damaged, or if a newer version has written it."""
  lines = {}
  for number, line in enumerate(jsonl.read(file, _SHAPE, _KEY), start=1):
    if line.get('format', 1) > FORMAT:
      raise UserError(
        f'{file}, line {number} has format {line["format"]}, and this version knows those up to '
        f'{FORMAT}: update it, or use another --results'
      )
    lines[line['run'], line['seed'], line['config_hash']] = _of_today(line)
  return lines


def _of_today(line):
  if line.get('format', 1) == 1 and line.get('max_vio'):
    less_one = lambda value: None if value is None else value - 1
    max_vio = {name: less_one(value) for name, value in line['max_vio'].items()}
    return line | {'max_vio': max_vio, 'format': FORMAT}
  return line


def put(file: Path, line: Mapping[str, object]) -> None:
  """Adds a line, or replaces the one of its key. The file changes as a whole or not at all,
  and by one sweep at a time.
  """
  file.parent.mkdir(parents=True, exist_ok=True)
  with _locked(file.parent):
    lines = read(file)
    lines[line['run'], line['seed'], line['config_hash']] = line
    temporary = file.with_suffix('.tmp')
    texts = [
      json.dumps(_plain(each), ensure_ascii=False, allow_nan=False) + '\n'
      for each in lines.values()
    ]
    temporary.write_text(''.join(texts), encoding='utf-8')
    os.replace(temporary, file)


def try_writing(file: Path) -> None:
  """UserError if `put` could not write here, so that it is told before the training, not after.
  Leaves nothing behind.
  """
  made = [folder for folder in (file.parent, *file.parent.parents) if not folder.exists()]
  try:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=file.parent) as probe:
      probe.write(b'\n')
  except OSError as error:
    raise of_file(error, file.parent) from error
  finally:
    for folder in made:
      with contextlib.suppress(OSError):  # it was not made, or another sweep uses it by now
        folder.rmdir()


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
  """Locks the folder once no other process of this machine has it locked: two sweeps with different
  --workdir may have the same --results.
  """
  descriptor = os.open(folder, os.O_RDONLY)
  try:
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    yield
  finally:
    os.close(descriptor)  # which unlocks it


def _plain(value: object) -> object:
  """`value` with null for numbers that JSON lacks, as in metrics.jsonl; diverged runs have some."""
  if isinstance(value, Mapping):
    return {key: _plain(each) for key, each in value.items()}
  if isinstance(value, (list, tuple)):
    return [_plain(each) for each in value]
  return None if isinstance(value, float) and not math.isfinite(value) else value


def missing(job: plan.Job, lines: Mapping[Key, dict]) -> list[plan.Run]:
  """The runs of a job that have no line yet, or one that lacks evaluations or measures."""
  made = lambda run: lines.get((run.name, job.seed, job.config_hash))
  return [run for run in job.runs if not made(run) or not has_evaluations(made(run), run)]


def of_other_studies(results: Path, study: str) -> list[dict]:
  """The lines of all studies but this one. UserError if a file of theirs is damaged,
  since its runs would be repeated.
  """
  files = sorted(file for file in results.glob('*/runs.jsonl') if file.parent.name != study)
  return [line for file in files for line in read(file).values()]


def has_evaluations(line: Mapping[str, object], run: plan.Run) -> bool:
  """Whether a line has exactly the evaluations that its run asks for now, and at least the
  measures.
  """
  wanted = {name: dict(intervention) for name, intervention in run.evaluations.items()}
  made = {name: made['intervention'] for name, made in line['evaluations'].items()}
  return made == wanted and (line.get('measures') or {}).keys() >= set(run.measures)


def scale(file: Path, own: Scale) -> Scale:
  """The scale of a study's figures: its own if any line is of it, or if there are no lines; else
  that of the last line. Lines from before they named a scale are of PROXY.
  """
  names = [line.get('scale', PROXY.name) for line in read(file).values()]
  return own if not names or own.name in names else SCALES.get(names[-1], PROXY)


def current(
  study_file: str,
  results: str | Path = 'experiments/results',
  scale: Scale = PROXY,
) -> list[dict]:
  """The lines of a study's runs as they are configured now, for its figures:
  in the order of `sweep()`, then of seeds.

  A field that was not measured yet when its line was written is None. UserError if the lines are of
  different data, since nothing could be compared.
  """
  study = plan.load(study_file)
  file = path(Path(results), study.name)
  lines = read(file)
  hashes = {
    run.name: job.config_hash
    for job in plan.jobs(study, scale, [0], {}, Path())
    for run in job.runs
  }
  seeds = sorted({seed for _, seed, _ in lines})
  keys = ((name, seed, config_hash) for name, config_hash in hashes.items() for seed in seeds)
  found = [dict.fromkeys(FIELDS) | {'format': 1} | lines[key] for key in keys if key in lines]
  check_data(file, found)
  return found


def check_data(file: Path, lines: Sequence[Mapping]) -> None:
  """UserError for lines of different text, whose losses do not compare.

  The name of a line's data includes the tokenizer, so only lines of one vocabulary are compared. If
  a study itself gives its runs several sources, only lines of the same source are.
  """
  of_texts: dict[object, dict[str, list[str]]] = {}
  for line in lines:
    # The first runs of the pilot are from before lines named their data.
    if line.get('data'):
      settings = line.get('settings') or {}
      text = settings.get('model.vocab_size'), (line.get('differs') or {}).get('data.sources')
      runs_of = of_texts.setdefault(text, {})
      runs_of.setdefault(line['data'], []).append(f'{line["run"]} (seed {line["seed"]})')
  for runs_of in of_texts.values():
    _check_one(file, runs_of)


def _check_one(file, runs_of):
  if len(runs_of) > 1:
    listed = '; '.join(f'{data}: {runs[0]}, {len(runs)} in all' for data, runs in runs_of.items())
    raise UserError(
      f'{file} has runs of different data ({listed}): '
      'delete the lines and folders of one, train it on the other'
    )
