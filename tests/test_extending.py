"""docs/extending.md applied to a copy of the library: the result trains, runs on a mesh, resumes,
has its parameters counted, and can be intervened on.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / 'docs/extending.md').read_text(encoding='utf-8')
BLOCKS = re.findall(r'^```(python|diff)\n(.*?)^```$', PAGE, re.MULTILINE | re.DOTALL)


def changed(text: str, change: str) -> str:
  """`text` with one block's changes. Its context and removed lines must be in `text`,
  in this order.
  """
  at = 0
  for old, new in hunks(change):
    assert old in text[at:], f'not found, or not in this order: {old}'
    start = text.index(old, at)
    text, at = text[:start] + new + text[start + len(old) :], start + len(new)
  return text


def hunks(change: str) -> list[list[str]]:
  """[old, new] of every context or removed line. Added lines go with the line before them;
  those at the top, with the first line.
  """
  found, first = [], ''
  for line in change.splitlines(keepends=True):
    sign, content = line[0], line[1:]
    if sign != '+':
      found.append([content, first + (content if sign == ' ' else '')])
      first = ''
    elif found:
      found[-1][1] += content
    else:
      first += content
  return found


@pytest.fixture(scope='module')
def extended(tmp_path_factory):
  """The output of tests/extended.py on a copy that has everything on the page."""
  copy = tmp_path_factory.mktemp('extended')
  for folder in ('moe', 'experiments', 'tests'):
    unused = shutil.ignore_patterns('results', '__pycache__', 'fixtures')
    shutil.copytree(ROOT / folder, copy / folder, ignore=unused)
  for kind, block in BLOCKS:
    name, content = re.match(r'(?:# |--- )(\S+)\n(.*)', block, re.DOTALL).groups()
    path = copy / name
    assert path.exists() == (kind == 'diff'), name
    path.write_text(changed(path.read_text(), content) if kind == 'diff' else content)
  command = [sys.executable, '-m', 'tests.extended', str(copy / 'run')]
  done = subprocess.run(command, cwd=copy, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-3000:]
  return json.loads(done.stdout)


def test_every_extension_is_in_the_metrics(extended):
  assert {'loss/overload', 'residual_square_N'} <= set(extended['metrics'])
  assert all(value > 0 for value in extended['overload'])


def test_a_mesh_with_stages_experts_and_microbatches_computes_the_same(extended):
  assert extended['spread_metrics'][0] < 1e-4, extended['spread_metrics']
  assert extended['spread_params'][0] < 1e-4, extended['spread_params']


def test_a_resumed_run_goes_on_as_if_never_stopped(extended):
  assert extended['resumed'][0] == 0, extended['resumed']


def test_the_bias_moves_by_the_rule_alone(extended):
  """The optimizer leaves the bias alone, and so does weight decay, which here takes half a per cent
  a step.
  """
  assert extended['bias'][0] < 1e-7 and extended['bias_moved'] > 0.009


def test_parameters_are_counted(extended):
  """Each of two layers adds a bias for 6 experts, and scales for queries and keys, 8 each."""
  assert extended['counted'] == 2 * 6 + 2 * 2 * 8


def test_without_a_tokens_best_experts_gates_still_add_up_to_one(extended):
  assert extended['gates'][0] < 1e-6


def test_its_choices_are_replayed(extended):
  """Replayed choices give the logits bit for bit; so do those of a masked model, whose gates are
  computed anew.
  """
  assert extended['replayed'][0] == extended['replayed_masked'][0] == 0
  # Affinities are the sigmoids before the gates are normalised.
  assert 0.1 < extended['affinities'] < 1


def test_every_weight_moves_by_the_rate_under_lion(extended):
  """Lion's update is the sign of a mean gradient, which is ±1 as every column of the head has a
  gradient.
  """
  least, most, rate = extended['lion']
  assert least == pytest.approx(rate, rel=1e-3) and most == pytest.approx(rate, rel=1e-3)


def test_a_study_is_runs_that_can_be_planned(extended):
  assert extended['study'] == ['adamw, seed 0: adamw', 'lion, seed 0: lion']
