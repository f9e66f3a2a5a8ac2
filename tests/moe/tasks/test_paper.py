"""The paper's benchmarks: the column that a model belongs to, the row fields that the page names,
and that rows with these fields are enough.
"""

from pathlib import Path

import pytest

from experiments import scaling, validation
from moe.config import from_config_dict
from moe.tasks import paper
from moe.tasks.suite import Asked, open_suite
from tests.moe.tasks.asked import write_rows
from tests.moe.tasks.rows import ROWS, several

PAGE = Path(__file__).parents[3] / 'docs/evaluation.md'
# Groups with a file for each subject, left out because parsing each group takes seconds.
GROUPS = ('mmlu_', 'cmmlu_', 'ceval-valid_', 'bbh_fewshot_', 'hendrycks_math_')


@pytest.mark.parametrize(
  ('file', 'variant', 'column'),
  [
    (validation, 'dense', paper.DENSE),
    (validation, 'hash', paper.HASH),
    (validation, 'switch', paper.SWITCH),
    (validation, 'gshard', paper.GSHARD),
    (validation, 'deepseek_moe', paper.DEEPSEEK_2B),
    (scaling, 'deepseek_moe_16b', paper.DEEPSEEK_16B),
    (scaling, 'deepseek_7b', paper.DEEPSEEK_7B),
    (validation, 'gshard_x1_5', None),
    (scaling, 'deepseek_moe_145b', None),
  ],
)
def test_the_column_of_a_model(file, variant, column):
  assert paper.column(from_config_dict(file.get_config(variant))) == column


def test_the_page_names_every_benchmark_as_it_is():
  text = PAGE.read_text(encoding='utf-8')
  for each in paper.BENCHMARKS:
    (fields,) = set(each.fields.values())
    shots = '' if each.shots is None else each.shots
    listed = lambda names: ', '.join(f'`{name}`' for name in names)
    row = f'| {each.name} | `{each.task}` | {shots} | {listed(each.fields)} | {listed(fields)} |'
    assert row.replace('|  |', '| |') in text.replace('|  |', '| |'), row
    assert not each.numbers or each.numbers.keys() >= {paper.DEEPSEEK_16B}
    assert {name for name in ROWS if paper.benchmark(name) == each}


def test_rows_with_these_fields_are_enough(tmp_path):
  """Every task can build its requests, with the paper's number of shots, from rows that have only
  these fields.
  """
  names = [name for name in ROWS if not name.startswith(GROUPS)]
  for name in names:
    for split, fields in paper.fields(name).items():
      write_rows(tmp_path, name, split, several(name, fields, 10))
  suite = open_suite(Asked(','.join(names), folder=str(tmp_path), allow_code=True))
  assert not suite.missing
  for name in names:
    task = suite.loaded[name]['tasks'][name]
    task.set_fewshot_seed(0)
    task.build_all_requests(limit=1)
    each = paper.benchmark(name)
    assert task.config.num_fewshot == (each.shots or 0)
    assert {metric['metric'] for metric in task.config.metric_list} & {each.metric.split('/')[0]}
    asked = [request.args for request in task.instances]
    assert all(isinstance(argument[0], str) for argument in asked)
