"""The paper's benchmarks: their tasks in the harness, examples in the prompt, fields of their rows,
and the numbers of the paper's tables (Tables 1 and 3 of arXiv 2401.06066).
"""

from collections.abc import Mapping
from typing import NamedTuple

from moe.config import Config

# The models that the columns of the tables are for.
DEEPSEEK_16B, DEEPSEEK_7B = 'DeepSeekMoE 16B', 'DeepSeek 7B'
DENSE, HASH, SWITCH, GSHARD, DEEPSEEK_2B = (
  'Dense',
  'Hash Layer',
  'Switch',
  'GShard',
  'DeepSeekMoE 2B',
)
_TABLE_1 = (DENSE, HASH, SWITCH, GSHARD, DEEPSEEK_2B)


class Benchmark(NamedTuple):
  """One row of the tables."""

  name: str  # the paper's
  task: str  # the harness's, or of moe/tasks/yaml
  shots: int | None  # None: as many as the task says
  metric: str  # the one to compare with the paper's number
  # {split: fields of its rows}; for a group, those of each of its tasks.
  fields: Mapping[str, tuple[str, ...]]
  numbers: Mapping[str, float]  # by column; percent, but bits per byte of the Pile


def _row(name, task, shots, metric, splits, fields, table_1=(), **more):
  numbers = dict(zip(_TABLE_1, table_1, strict=True)) if table_1 else {}
  numbers |= {{'b16': DEEPSEEK_16B, 'b7': DEEPSEEK_7B}[key]: value for key, value in more.items()}
  return Benchmark(
    name, task, shots, metric, dict.fromkeys(splits.split(), tuple(fields.split())), numbers
  )


_ARC = 'question choices answerKey'
_ABCD = 'question A B C D answer'
BENCHMARKS = (
  _row('Pile', 'pile_text', None, 'bits_per_byte', 'test', 'text', b16=0.74, b7=0.75),
  _row(
    *('HellaSwag', 'hellaswag', 0, 'acc_norm', 'validation train'),
    'activity_label ctx_a ctx_b endings label',
    (38.8, 46.2, 49.1, 50.5, 54.8),
    b16=77.1,
    b7=75.4,
  ),
  _row(
    *('PIQA', 'piqa', 0, 'acc_norm', 'validation train', 'goal sol1 sol2 label'),
    (66.8, 68.4, 70.5, 70.6, 72.3),
    b16=80.2,
  ),
  _row(
    *('ARC-easy', 'arc_easy', 0, 'acc_norm', 'test train', _ARC),
    (41.0, 45.3, 45.9, 43.9, 49.4),
    b16=68.1,
  ),
  _row(
    *('ARC-challenge', 'arc_challenge', 0, 'acc_norm', 'test train', _ARC),
    (26.0, 28.2, 30.2, 31.6, 34.3),
    b16=49.8,
  ),
  _row(
    *('RACE-middle', 'race_middle', 5, 'acc', 'test train', 'article question options answer'),
    (38.8, 38.8, 43.6, 42.1, 44.0),
    b16=61.9,
  ),
  _row(
    *('RACE-high', 'race', 5, 'acc', 'test', 'article problems'),
    (29.0, 30.0, 30.9, 30.4, 31.7),
    b16=46.4,
  ),
  _row(
    'DROP',
    'drop',
    1,
    'em',
    'validation train',
    'query_id passage question answer validated_answers',
    b16=32.9,
  ),
  _row(
    *('GSM8K', 'gsm8k', 8, 'exact_match/strict-match', 'test train', 'question answer'),
    b16=18.8,
  ),
  _row('MATH', 'hendrycks_math', 4, 'exact_match', 'test train', 'problem solution', b16=4.3),
  _row(
    *('HumanEval', 'humaneval', 0, 'pass_at_1', 'test', 'prompt test entry_point'),
    (0.0, 1.2, 2.4, 3.7, 4.9),
    b16=26.8,
  ),
  _row(
    *('MBPP', 'mbpp', 3, 'pass_at_1', 'test prompt', 'text code test_list'),
    (0.2, 0.6, 0.4, 0.2, 2.2),
    b16=39.2,
  ),
  _row(
    *('TriviaQA', 'triviaqa', 5, 'exact_match/remove_whitespace', 'validation train'),
    'question answer',
    (4.9, 6.5, 8.9, 10.2, 16.6),
    b16=64.8,
    b7=59.7,
  ),
  _row(
    *('NaturalQuestions', 'nq_open', 5, 'exact_match/remove_whitespace', 'validation train'),
    'question answer',
    (1.4, 1.4, 2.5, 3.2, 5.7),
    b16=25.5,
  ),
  _row('MMLU', 'mmlu', 5, 'acc', 'test dev', 'question choices answer', b16=45.0, b7=48.2),
  _row(
    *('WinoGrande', 'winogrande', 0, 'acc', 'validation train'),
    'sentence option1 option2 answer',
    b16=70.2,
  ),
  _row('CLUEWSC', 'cluewsc', 5, 'acc', 'validation train', 'text target label', b16=72.1),
  _row('C-Eval', 'ceval-valid', 5, 'acc', 'val dev', _ABCD, b16=40.6),
  _row('CMMLU', 'cmmlu', 5, 'acc', 'test dev', 'Question A B C D Answer', b16=42.5),
  _row('CHID', 'chid', 0, 'acc', 'test', 'content candidates answer', b16=89.4),
  _row('BBH', 'bbh_fewshot', 3, 'exact_match', 'test', 'input target'),
  _row('TruthfulQA', 'truthfulqa_mc2', 0, 'acc', 'validation', 'question mc2_targets'),
)


def benchmark(task: str) -> Benchmark | None:
  """The benchmark of a task's name, or of the group that the task is in; None without one."""
  found = [each for each in BENCHMARKS if task == each.task or task.startswith(f'{each.task}_')]
  return max(found, key=lambda each: len(each.task), default=None)


def shots(task: str) -> int | None:
  found = next((each for each in BENCHMARKS if each.task == task), None)
  return found.shots if found else None


def fields(task: str) -> Mapping[str, tuple[str, ...]]:
  """{split: fields that every row must have}; {} for a task that is not the paper's."""
  found = benchmark(task)
  return found.fields if found else {}


def column(config: Config) -> str | None:
  """The column of the tables that a model of this config belongs to; None if it is in none."""
  model, moe = config.model, config.moe
  shape = model.num_layers, model.d_model, model.num_dense_layers, model.d_ff
  experts = moe.num_experts, moe.experts_per_token, moe.num_shared_experts, moe.d_expert
  name = _MODELS.get((shape, experts))
  return HASH if name == SWITCH and moe.router == 'hash' else name


# {((layers, width, dense layers, their width), (experts, per token, shared, their width)): column}.
_2B, _NO_EXPERTS = (9, 1280, 0, 0), (0, 0, 0, 0)
_MODELS = {
  ((9, 1280, 9, 3416), _NO_EXPERTS): DENSE,
  (_2B, (16, 1, 0, 3416)): SWITCH,
  (_2B, (16, 2, 0, 3416)): GSHARD,
  (_2B, (63, 7, 1, 856)): DEEPSEEK_2B,
  ((28, 2048, 1, 10_944), (64, 6, 2, 1408)): DEEPSEEK_16B,
  ((30, 4096, 30, 11_008), _NO_EXPERTS): DEEPSEEK_7B,
}
