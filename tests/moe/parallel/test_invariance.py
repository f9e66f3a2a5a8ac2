"""Losses, gradients and metrics do not depend on the mesh, microbatches,
rematerialisation or transport.
"""

import json
from pathlib import Path

import pytest

from tests.moe.parallel.cases import GROUPS, check, made_of

ROOT = Path(__file__).parents[3]


def test_the_record_at_full_width_has_every_case():
  """It backs what the README says, so it covers every case and stays within those bounds."""
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


@pytest.mark.parametrize('case', GROUPS['balancing'])
def test_balancing(case):
  check('balancing', case)


@pytest.mark.parametrize('case', GROUPS['gates'])
def test_gates(case):
  check('gates', case)
