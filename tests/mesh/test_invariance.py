"""Losses, gradients and metrics do not depend on the mesh, microbatches, rematerialisation or transport."""

import functools
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mesh.cases import GROUPS

ROOT = Path(__file__).parents[2]


@functools.cache
def measured(group: str) -> dict[str, dict]:
  """What `tests.mesh.cases` says of a group: case → how far it is from one device."""
  done = subprocess.run(
    [sys.executable, '-m', 'tests.mesh.cases', group], cwd=ROOT, capture_output=True, text=True, check=False
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
  """What the README says of it; the gradient norm of late steps is over 1e-5 there."""
  lines = (ROOT / 'experiments/results/invariance_whole.jsonl').read_text().splitlines()
  records = [json.loads(line) for line in lines]
  assert [record['case'] for record in records] == [case for group in GROUPS.values() for case in group]
  for what, bound in {'gradients': 1.9e-6, 'first_step': 1e-6, 'loss': 1e-6, 'trajectory': 1.13e-5}.items():
    assert max(record[what][0] for record in records) <= bound
  assert all(record['trajectory'][0] <= 1e-5 or 'gradient_norm' in record['trajectory'][1] for record in records)


@pytest.mark.parametrize('case', GROUPS['axes'])
def test_axes(case):
  check('axes', case)
