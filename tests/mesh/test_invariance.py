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


@pytest.mark.parametrize('case', GROUPS['axes'])
def test_axes(case):
  check('axes', case)
