"""Losses, gradients and metrics do not depend on the mesh, microbatches, rematerialisation or transport."""

import functools
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.moe.parallel.cases import GROUPS, made_of

ROOT = Path(__file__).parents[3]


@functools.cache
def measured(group: str) -> dict[str, dict]:
  """What `tests.moe.parallel.cases` says of a group: case → how far it is from one device."""
  done = subprocess.run(
    [sys.executable, '-m', 'tests.moe.parallel.cases', group],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  return {record['case']: record for record in map(json.loads, done.stdout.splitlines())}


def check(group: str, case: str) -> dict:
  record = measured(group)[case]
  assert record['loss_fell'] > 0.1  # the steps do train
  for what in ('gradients', 'first_step', 'loss', 'trajectory'):
    assert record[what][0] <= 1e-5, (what, record)
  return record


def test_the_record_at_full_width_has_every_case():
  """What the README says of it."""
  lines = (ROOT / 'experiments/results/invariance_whole.jsonl').read_text().splitlines()
  records = [json.loads(line) for line in lines]
  cases = [(group, case) for group, of_group in GROUPS.items() for case in of_group]
  assert [record['case'] for record in records] == [case for _, case in cases]
  assert [record['of'] for record in records] == [made_of(*case, whole=True) for case in cases]
  for what, bound in {
    'gradients': 1.6e-6,
    'first_step': 3e-7,
    'loss': 2.4e-7,
    'trajectory': 5e-7,
  }.items():
    assert max(record[what][0] for record in records) <= bound, what


@pytest.mark.parametrize('case', GROUPS['axes'])
def test_axes(case):
  check('axes', case)
