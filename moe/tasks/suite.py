"""Tasks of the harness: opened with their rows, then scored for a run as often as wanted."""

import dataclasses
import logging
import os
from typing import NamedTuple
from unittest import mock

from moe.config import Config
from moe.errors import UserError, one_line
from moe.inspection import Run
from moe.tasks import data, paper
from moe.tasks.data import Missing

# The seed for drawing examples, as in the harness.
_SEED = 1234


class Asked(NamedTuple):
  """What to score, as the flags of launch.evaluate say."""

  tasks: str  # names, separated by commas; 'paper': paper.BENCHMARKS
  num_fewshot: int | None = None  # None: the paper's, or the task's own
  limit: int | None = None  # rows of each task
  folder: str = ''
  allow_code: bool = False
  chat_template: bool = False

  @property
  def names(self) -> list[str]:
    return [name.strip() for name in self.tasks.split(',') if name.strip()]


class Result(NamedTuple):
  """The scores of one task or group."""

  version: object
  shots: int | None  # None for a group whose tasks differ
  rows: int
  metrics: dict[str, float]
  errors: dict[str, float]  # standard errors of those that have one
  cut: int  # requests whose context was cut on the left


class Results(NamedTuple):
  tasks: dict[str, Result]
  missing: dict[str, str]  # {name: why it was not scored}

  def by_metric(self) -> dict[str, float]:
    """{'hellaswag/acc': 0.25, …}."""
    return {
      f'{name}/{metric}': value
      for name, result in self.tasks.items()
      for metric, value in result.metrics.items()
    }


@dataclasses.dataclass
class Suite:
  """Opened tasks. `score` may be called again, with other parameters."""

  asked: Asked
  loaded: dict[str, dict]  # what TaskManager.load gives, by the name that was asked for
  missing: dict[str, str]

  def score(self, run: Run) -> Results:
    """Scores a run. UserError for rows that a task cannot use, and what `Harness` refuses."""
    from lm_eval.evaluator import evaluate

    from moe.tasks.errors import standard_error
    from moe.tasks.harness import Harness
    from moe.tasks.loading import LocalTask

    model = Harness(run, self.asked.chat_template)
    together = {kind: {} for kind in ('tasks', 'groups', 'group_map')}
    for loaded in self.loaded.values():
      for kind, found in loaded.items():
        together[kind] |= found
    model.tasks = together['tasks']
    for task in model.tasks.values():
      task.set_fewshot_seed(_SEED)
    # The harness shows a bar for every task while it makes its requests, which takes no time.
    without_bars = mock.patch('lm_eval.api.task.tqdm', lambda items, **_: items)
    with_all_errors = mock.patch('lm_eval.evaluator_utils.stderr_for_metric', standard_error)
    try:
      with without_bars, with_all_errors:
        found = evaluate(
          model,
          together,
          limit=self.asked.limit,
          log_samples=False,
          apply_chat_template=self.asked.chat_template,
          fewshot_as_multiturn=True,
          confirm_run_unsafe_code=self.asked.allow_code,
        )
    except UserError:
      raise
    except Exception:
      for task in model.tasks.values():
        if isinstance(task, LocalTask):
          task.refuse_bad_row()
      raise
    results = {
      name: _result(name, found, loaded, model.cut) for name, loaded in self.loaded.items()
    }
    return Results(results, self.missing)


def open_suite(asked: Asked) -> Suite:
  """Reads the rows of all tasks. UserError for a task that does not exist, rows that are wrong,
  code without consent, or nothing left to score.
  """
  start_harness()
  from moe.tasks import loading

  if asked.limit is not None and asked.limit < 1:
    raise UserError(f'limit={asked.limit} must be at least 1')
  if asked.num_fewshot is not None and asked.num_fewshot < 0:
    raise UserError(f'num_fewshot={asked.num_fewshot} must be at least 0')
  folder = data.must_be_folder(asked.folder) if asked.folder else None
  wanted = _wanted(asked)
  manager, loaded, missing = loading.manager(wanted), {}, {}
  for name, shots in wanted.items():
    try:
      loaded[name] = loading.load(manager, name, shots, folder, asked.allow_code)
    except Missing as error:
      # The paper's other tasks are scored without this one.
      if isinstance(error, loading.NoConsent) and name in asked.names:
        raise
      missing[name] = str(error)
  if not loaded:
    told = '; '.join(f'{name}: {why}' for name, why in missing.items())
    raise UserError(f'there is nothing to score: {told}')
  return Suite(asked, loaded, missing)


def open_for_training(config: Config) -> Suite | None:
  """The suite of evaluation.tasks; None if it names none.
  UserError as in `open_suite`, or if one task is missing.
  """
  evaluation = config.evaluation
  if not evaluation.tasks:
    return None
  asked = Asked(evaluation.tasks, limit=evaluation.task_limit, folder=evaluation.task_data)
  try:
    suite = open_suite(asked)
  except UserError as error:
    raise UserError(f'config.evaluation.tasks: {error}') from error
  for name, why in suite.missing.items():
    raise UserError(f'config.evaluation.tasks: {name}: {why}')
  return suite


def _wanted(asked: Asked) -> dict[str, int | None]:
  """{name: examples in the prompt, None: as many as the task says}."""
  shots: dict[str, int | None] = {}
  for name in asked.names:
    if name == 'paper':
      shots |= {each.task: each.shots for each in paper.BENCHMARKS}
    else:
      shots[name] = paper.shots(name)
  if not shots:
    raise UserError("give names of tasks, separated by commas (hellaswag,piqa), or 'paper'")
  return {
    name: count if asked.num_fewshot is None else asked.num_fewshot for name, count in shots.items()
  }


def start_harness():
  """Imports the harness, after setting the environment that its libraries read when imported.
  UserError if it is not installed.
  """
  os.environ.setdefault('HF_DATASETS_DISABLE_PROGRESS_BARS', '1')
  data.offline_where_unreached()
  try:
    import lm_eval.evaluator  # noqa: F401
  except ImportError as error:
    raise UserError(
      f"--tasks needs EleutherAI's lm-evaluation-harness: pip install '.[evals]' "
      f'({one_line(error)})'
    ) from error
  # It logs every prompt that it builds.
  logging.getLogger('lm_eval').setLevel(logging.ERROR)


def _result(name, found, loaded, cut):
  """The `Result` of a name, out of what `evaluate` found for all names. A tag has the mean of its
  tasks.
  """
  leaves = list(loaded['tasks'])
  told = found['results'].get(name)
  if told is None:
    told = _mean([found['results'][leaf] for leaf in leaves])
  metrics, errors = {}, {}
  for key, value in told.items():
    metric, comma, kind = key.partition(',')
    if not comma or not isinstance(value, (int, float)):
      continue
    filtered = '' if kind == 'none' else f'/{kind}'
    if metric.endswith('_stderr'):
      errors[metric.removesuffix('_stderr') + filtered] = float(value)
    else:
      metrics[metric + filtered] = float(value)
  shots = {found['n-shot'][leaf] for leaf in leaves}
  rows = sum(found['n-samples'][leaf]['effective'] for leaf in leaves)
  version = found['versions'].get(name, found['versions'].get(leaves[0]))
  return Result(
    version,
    shots.pop() if len(shots) == 1 else None,
    rows,
    metrics,
    errors,
    sum(cut[x] for x in leaves),
  )


def _mean(results):
  keys = [key for key in results[0] if '_stderr,' not in key and ',' in key]
  return {key: sum(each[key] for each in results) / len(results) for key in keys}
