"""The output of `launch.evaluate --tasks`: a table beside the paper's numbers, JSON, and a line in
RUN/evaluations.jsonl.
"""

import datetime
import importlib.metadata
from collections.abc import Mapping
from pathlib import Path

from moe import files
from moe.errors import of_file
from moe.inspection import Run
from moe.storage import provenance
from moe.tasks import paper
from moe.tasks.suite import Asked, Result, Results

FILE = 'evaluations.jsonl'
# The columns of the paper beside a run that is none of its models.
_OTHERWISE = (paper.DEEPSEEK_2B, paper.DEEPSEEK_16B)


def record(run: Run, asked: Asked, results: Results) -> dict:
  """The line of evaluations.jsonl: JSON-able."""
  commit, dirty = provenance.commit()
  return {
    'time': datetime.datetime.now().astimezone().isoformat('T', 'seconds'),
    'run': run.config.name,
    'step': run.step,
    'commit': commit,
    'dirty': dirty,
    'lm_eval': importlib.metadata.version('lm_eval'),
    'tokenizer': run.tokenizer.sha256,
    'context': run.config.data.seq_len,
    'asked': asked._asdict(),
    'paper_column': paper.column(run.config),
    'tasks': {name: _told(run, name, each) for name, each in results.tasks.items()},
    'missing': results.missing,
  }


def append(workdir: Path, line: Mapping) -> None:
  """Adds the line to the run's evaluations.jsonl. UserError where it cannot be written."""
  path = workdir / FILE
  try:
    with path.open('a', encoding='utf-8') as file:
      file.write(files.to_json(line) + '\n')
  except OSError as error:
    raise of_file(error, path) from error


def table(run: Run, results: Results) -> str:
  """The results for people: in percent, but bits per byte and perplexities as they are."""
  ours = paper.column(run.config)
  columns = (ours,) if ours else _OTHERWISE
  heads = [f'paper: {column}' for column in columns]
  lines = [
    f'{"task":<22}{"shots":>6}{"rows":>8}  {"metric":<30}{"score":>8}{"± error":>9}'
    + ''.join(f'{head:>24}' for head in heads)
  ]
  for name, result in results.tasks.items():
    benchmark = paper.benchmark(name)
    shots = '' if result.shots is None else result.shots
    for metric, value in result.metrics.items():
      is_share = not metric.startswith(('bits_per_byte', 'byte_perplexity', 'word_perplexity'))
      scale, digits = (100, 2) if is_share else (1, 4)
      error = result.errors.get(metric)
      numbers = [
        benchmark.numbers.get(column) if benchmark and metric == benchmark.metric else None
        for column in columns
      ]
      lines.append(
        f'{name:<22}{shots:>6}{result.rows:>8,}  {metric:<30}{scale * value:>8.{digits}f}'
        + (f'{scale * error:>9.{digits}f}' if error is not None else f'{"":>9}')
        + ''.join(f'{"-" if number is None else number:>24}' for number in numbers)
      )
    if result.cut:
      lines.append(f'{"":<22}{result.cut:,} contexts were longer than the model reads, and cut')
  if results.missing:
    lines += ['', f'{"not scored":<22}why']
    lines += [f'{name:<22}{why}' for name, why in results.missing.items()]
  return '\n'.join(line.rstrip() for line in lines)


def _told(run: Run, name: str, result: Result) -> dict:
  benchmark, column = paper.benchmark(name), paper.column(run.config)
  told = result._asdict()
  if benchmark:
    told['paper'] = {'metric': benchmark.metric, **benchmark.numbers}
    told['paper_same_model'] = benchmark.numbers.get(column) if column else None
  return told
