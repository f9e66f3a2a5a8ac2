"""Tasks with rows from a folder, through launch.evaluate in this process."""

import json
import math

import pytest

from experiments.benchmarks.evaluation import write_run
from tests import in_process
from tests.moe.tasks.asked import score, write_rows
from tests.moe.tasks.rows import ROWS

pytestmark = pytest.mark.usefixtures('quick_compile')

PIQA = [
  {'goal': 'see a fox', 'sol1': 'the lazy dog', 'sol2': 'the quick brown fox', 'label': 1},
  {'goal': '专家', 'sol1': '把每个词', 'sol2': '交给 😀', 'label': 0},
  {'goal': 'an expert', 'sol1': 'of one token', 'sol2': 'in one line', 'label': 0},
]


@pytest.fixture(scope='module')
def workdir(run, tmp_path_factory):
  """A run's folder with a checkpoint of `run`'s weights."""
  return write_run(run, tmp_path_factory.mktemp('runs') / 'run')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('rows')
  write_rows(folder, 'piqa', 'validation', PIQA)
  write_rows(folder, 'pile_text', 'test', [{'text': row['sol1']} for row in PIQA])
  return folder


def flags(workdir, folder, tasks, *more):
  return (f'--workdir={workdir}', f'--task_data={folder}', f'--tasks={tasks}', *more)


def test_a_task_from_a_folder(workdir, folder, run):
  """Accuracies are those of the loops. A task without rows is reported, not an error."""
  told = json.loads(
    in_process.check(
      'evaluate', *flags(workdir, folder, 'piqa,winogrande,pile_text', '--format=json')
    )
  )
  right = right_by_byte = 0
  for row in PIQA:
    context = [run.tokenizer.bos_id, *run.tokenizer.encode(f'Question: {row["goal"]}\nAnswer:')]
    values = []
    for choice in (row['sol1'], row['sol2']):
      whole = run.tokenizer.encode(f'Question: {row["goal"]}\nAnswer: {choice}')
      values.append(score(run, context, [run.tokenizer.bos_id, *whole][len(context) :])[0])
    lengths = [len(row['sol1']), len(row['sol2'])]
    right += (values[1] > values[0]) == row['label']
    right_by_byte += (values[1] / lengths[1] > values[0] / lengths[0]) == row['label']
  piqa = told['tasks']['piqa']
  assert piqa['metrics'] == pytest.approx({'acc': right / 3, 'acc_norm': right_by_byte / 3})
  assert (piqa['rows'], piqa['shots'], piqa['cut']) == (3, 0, 0)
  assert piqa['paper']['DeepSeekMoE 16B'] == 80.2 and piqa['paper_same_model'] is None
  assert piqa['errors'].keys() == piqa['metrics'].keys()
  nats = -sum(
    score(run, [run.tokenizer.bos_id], run.tokenizer.encode(row['sol1']))[0] for row in PIQA
  )
  size, pile = sum(len(row['sol1'].encode()) for row in PIQA), told['tasks']['pile_text']
  assert pile['metrics'] == pytest.approx({'bits_per_byte': nats / math.log(2) / size})
  assert 0 < pile['errors']['bits_per_byte'] < pile['metrics']['bits_per_byte']
  assert told['step'] == 7 and told['missing'].keys() == {'winogrande'}
  (line,) = (workdir / 'evaluations.jsonl').read_text().splitlines()
  assert json.loads(line) == told
  told = in_process.check('evaluate', *flags(workdir, folder, 'piqa,winogrande', '--limit=2'))
  assert '\nwinogrande            no ' in told and '80.2' in told
  assert len((workdir / 'evaluations.jsonl').read_text().splitlines()) == 2


BAD_ROWS = {
  'field': ({'goal': 'x', 'sol1': 'a', 'label': 0}, "line 2: no field 'sol2'"),
  'type': (PIQA[0] | {'label': 'one'}, 'line 2: a value is of another type'),
}


@pytest.mark.parametrize('name', BAD_ROWS)
def test_a_wrong_row_is_named(workdir, tmp_path, name):
  row, words = BAD_ROWS[name]
  path = write_rows(tmp_path, 'piqa', 'validation', [PIQA[0], row])
  line = in_process.error_line('evaluate', *flags(workdir, tmp_path, 'piqa'))
  assert f'{path}, {words}' in line


def test_bad_input_is_one_line(workdir, folder, tmp_path):
  refused = lambda *arguments: in_process.error_line('evaluate', *flags(workdir, *arguments))
  assert "no task 'hellaswog': did you mean 'hellaswag'?" in refused(folder, 'piqa,hellaswog')
  assert 'humaneval runs code' in refused(folder, 'piqa,humaneval')
  assert 'no chat_template' in refused(folder, 'piqa', '--chat_template')
  assert "--mesh=fsdp: 'fsdp' must be AXIS=DEVICES" in refused(folder, 'piqa', '--mesh=fsdp')
  assert 'limit=0' in refused(folder, 'piqa', '--limit=0')
  assert 'nothing to score: winogrande: no ' in refused(folder, 'winogrande')
  assert 'must be a folder' in refused(tmp_path / 'none', 'piqa')
  assert 'neither --sources' in refused(folder, 'piqa', '--sources=x=y')
  assert 'train.jsonl' in refused(folder, 'piqa', '--num_fewshot=1')
  path = write_rows(tmp_path, 'piqa', 'validation', PIQA)
  path.write_bytes(path.read_bytes() + b'{"goal": "\xff"}\n')
  assert f'{path}, line 4: not UTF-8' in refused(tmp_path, 'piqa')
  path.write_text('[1]\n')
  assert f'{path}, line 1: a row must be a JSON object' in refused(tmp_path, 'piqa')
  rows = [ROWS['race_middle'], ROWS['race_middle'] | {'answer': 'E'}]
  race = write_rows(tmp_path, 'race_middle', 'test', rows)
  line = refused(tmp_path, 'race_middle', '--num_fewshot=0')
  assert f'{race}, line 2: race_middle cannot be made of it' in line
  path.write_text('\n')
  assert f'{path} has no rows' in refused(tmp_path, 'piqa')


def test_a_context_smaller_than_one_question(workdir, tmp_path):
  row = PIQA[0] | {'goal': 'the quick brown fox 😀 专家? ' * 30}
  write_rows(tmp_path, 'piqa', 'validation', [row, row])
  line = in_process.error_line('evaluate', *flags(workdir, tmp_path, 'piqa'))
  assert 'task piqa: the shortest question has ' in line and 'data.seq_len=32' in line
